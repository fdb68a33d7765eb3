//! Standard output and error of commands, for people.
//!
//! A reader that has gone (`cairn demo | head`) is no reason to fail, let alone to panic as the
//! `print` macros do: what is left is not printed.

use std::fmt::Display;
use std::io::{self, Write};

/// `println!`, to a reader that may have gone.
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// One line to standard output.
pub fn line(text: impl Display) {
    let _reader_may_be_gone = writeln!(io::stdout(), "{text}");
}

/// Text to standard output as it is.
pub fn text(text: impl Display) {
    let _reader_may_be_gone = write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
}

/// One line to standard error.
pub fn error_line(text: impl Display) {
    let _reader_may_be_gone = writeln!(io::stderr(), "{text}");
}
