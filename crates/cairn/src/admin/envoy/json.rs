//! Large JSON, written as it is made: one item a line.

use serde::Serialize;
use std::io::{self, Write};

/// A list that is being written.
pub struct Items<'a> {
    out: &'a mut dyn Write,
    empty: bool,
}

impl<'a> Items<'a> {
    /// Writes `before`, all that `write` pushes, and `after`.
    pub fn write(
        out: &'a mut dyn Write,
        before: &str,
        after: &str,
        write: impl FnOnce(&mut Items<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(before.as_bytes())?;
        write(&mut Items { out: &mut *out, empty: true })?;
        out.write_all(after.as_bytes())
    }

    /// Another item.
    pub fn push(&mut self, item: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(self.next()?, item)?;
        Ok(())
    }

    /// Room for another item, which the caller writes.
    pub fn next(&mut self) -> io::Result<&mut dyn Write> {
        let comma: &[u8] = if std::mem::take(&mut self.empty) { b"\n" } else { b",\n" };
        self.out.write_all(comma)?;
        Ok(&mut *self.out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_item_a_line() {
        let mut out = Vec::new();
        Items::write(&mut out, "[", "]", |items| {
            items.push(&1)?;
            Items::write(items.next()?, "{\"a\":[", "]}", |inner| inner.push(&"x"))
        })
        .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "[\n1,\n{\"a\":[\n\"x\"]}]");
    }
}
