#![no_main]
use libfuzzer_sys::fuzz_target;

// What is printed is what was parsed.
fuzz_target!(|text: &str| {
    if let Ok(target) = cairn_hbone::Target::parse(text) {
        assert_eq!(cairn_hbone::Target::parse(&target.to_string()).ok(), Some(target));
    }
});
