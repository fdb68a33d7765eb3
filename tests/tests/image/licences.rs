//! `deploy/image/licenses.sh check`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn check(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(crate::repository().join("deploy/image/licenses.sh"));
    command.arg("check").args(args).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Of everything that the binary is made of.
pub fn are_allowed() {
    let output = check(&[], "");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    print!("{said}");
}

/// Expressions mean what SPDX says.
pub fn are_read() {
    let allowed = [
        "MIT",
        "MIT/Apache-2.0",
        "MIT OR GPL-3.0-only",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "GPL-3.0-only OR MIT AND ISC",
        "Apache-2.0 WITH LLVM-exception OR MIT",
    ];
    let refused = [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "(MIT OR GPL-3.0-only) AND GPL-3.0-only",
        "Apache-2.0 WITH LLVM-exception",
        "(MIT",
        "MIT MIT",
    ];
    for (expressions, expected) in [(&allowed[..], true), (&refused[..], false)] {
        for expression in expressions {
            let output = check(&["-"], &format!("crate 1.0.0|{expression}|https://example.org\n"));
            assert_eq!(output.status.success(), expected, "{expression}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(expected || said.contains("crate 1.0.0: "), "{expression}: {said}");
        }
    }
}
