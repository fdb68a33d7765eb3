#![no_main]
use cairn_router::format::{Format, FormatContext};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let context = FormatContext::default();
    if let Ok(format) = Format::parse(text) {
        let _text = format.render(&context, None, None);
    }
    let (format, _unknown) = Format::parse_for_log(text);
    let _text = format.render(&context, None, None);
});
