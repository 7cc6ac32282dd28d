//! Fuzzes the SPDY server: what an input means, and what is checked, is told in the module's `exercise.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/streaming/idle.rs"]
mod idle;
#[allow(dead_code, unused_imports)]
#[path = "../../src/streaming/spdy/mod.rs"]
mod spdy;

fuzz_target!(|input: &[u8]| spdy::exercise::input(input));
