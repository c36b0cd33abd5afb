//! The archives of audits.

use wiretight::proof::audit::archive::{self, File, MANIFEST};
use wiretight::proof::audit::check;
use wiretight_tlog::SignedCheckpoint;

/// The names of the parts in the second form.
const NAMES: [&str; 4] = ["audit.json", "facts.json", "log.json", "scans/001.json"];

/// The first byte says in which form the rest is. 0: an archive. Otherwise: the contents of [`NAMES`], separated by line
/// feeds, from which an archive with a manifest is made, so that the fuzzer reaches the files in it.
///
/// Properties checked: an archive that is accepted is written again as the same bytes, and what is written is read again.
pub fn archive(data: &[u8]) {
    let Some((form, data)) = data.split_first() else { return };
    let bytes = match form {
        0 => data.to_vec(),
        _ => {
            let parts = data.splitn(NAMES.len(), |byte| *byte == b'\n');
            let files = NAMES
                .iter()
                .zip(parts)
                .map(|(name, bytes)| File { name: (*name).to_owned(), bytes: bytes.to_vec() });
            let files: Vec<File> = files.collect();
            let Ok(bytes) = archive::write(files.clone(), time_of(data)) else { return };
            let read = archive::read(&bytes).expect("what was written is read");
            let again = read.files.iter().filter(|file| file.name != MANIFEST);
            assert!(again.zip(&files).all(|(a, b)| a.name == b.name && a.bytes == b.bytes));
            assert!(read.against_manifest().is_empty());
            bytes
        }
    };
    if let Ok(read) = archive::read(&bytes)
        && read.against_manifest().is_empty()
    {
        let files = read.files.iter().filter(|file| file.name != MANIFEST);
        let files = files.map(|file| File { name: file.name.clone(), bytes: file.bytes.to_vec() });
        assert_eq!(archive::write(files.collect(), read.time).as_deref(), Ok(&*bytes));
    }
    let opened = check::open(&bytes);
    let tree = opened.checkpoint().map(SignedCheckpoint::unverified).cloned();
    let _ = opened.check(tree.as_ref());
}

/// The time of the export in a head, so that it can be the time of the files.
fn time_of(data: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(data);
    let digits = text.split("\"made\":").nth(1).unwrap_or_default();
    let digits: String = digits.chars().take_while(char::is_ascii_digit).take(10).collect();
    digits.parse().unwrap_or_default()
}
