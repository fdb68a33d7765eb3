#![no_main]
use cairn_router::cel::Expression;
use cairn_router::format::{Facts, FormatContext};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(expression) = Expression::compile(text) {
        let context = FormatContext::default();
        let facts = Facts { context: &context, request: None, response: None };
        let _true = expression.is_true(&facts);
        let _text = expression.text(&facts);
    }
});
