//! Paths of generated code, of a dependency and of C, and the time when C was compiled: they must be the same.
use std::ffi::{CStr, c_char};

include!(concat!(env!("OUT_DIR"), "/generated.rs"));

unsafe extern "C" {
    fn where_and_when() -> *const c_char;
}

fn main() {
    println!("{} {:?}", generated(), unsafe { CStr::from_ptr(where_and_when()) });
    let slab = slab::Slab::<u8>::new();
    println!("{}", slab[std::env::args().count()]);
}
