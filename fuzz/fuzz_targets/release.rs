#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wiretight_fuzz::release(data));
