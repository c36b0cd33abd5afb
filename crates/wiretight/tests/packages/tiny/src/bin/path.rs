//! Not planted by default: an absolute path that no compiler's option replaces.
fn main() {
    println!("{}", env!("CARGO_MANIFEST_DIR"));
}
