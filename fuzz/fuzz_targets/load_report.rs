//! A load report that another process has written: what is taken makes sense, and is taken again when
//! it is written.
#![no_main]

use cairn_autoscale::LoadReport;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match LoadReport::parse(data) {
        Ok(report) => {
            let text = serde_json::to_vec(&report).expect("a report is JSON");
            let again = LoadReport::parse(&text).expect("what was read is a report");
            assert_eq!(again.requests_total, report.requests_total);
        }
        Err(error) => assert!(!error.field.is_empty()),
    }
});
