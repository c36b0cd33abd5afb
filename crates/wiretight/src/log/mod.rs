//! The transparency log around `wiretight_tlog`: what cosigns it, reads it and watches it.

pub mod evidence;
pub mod http;
pub mod monitor;
pub mod reader;
pub mod witness;
