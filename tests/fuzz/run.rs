#![no_main]
//! One fuzzer for each target, chosen by the name of its binary.

mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let name = env!("CARGO_BIN_NAME");
    for (_, target) in targets::TARGETS.iter().filter(|(target, _)| *target == name) {
        target(data);
    }
});
