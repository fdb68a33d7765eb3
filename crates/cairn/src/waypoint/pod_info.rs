//! Labels and annotations as the downward API writes them: `key="value"` lines, the value quoted as
//! Go's `strconv.Quote` does it.

use std::collections::BTreeMap;

/// Longest file that is read, in bytes; Kubernetes allows annotations of 256 KiB in total.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads a file's contents. A line that is not understood is left out and returned, so that it can be
/// warned about.
pub fn parse(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let mut found = BTreeMap::new();
    let mut odd = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let pair = line.split_once('=').and_then(|(key, value)| {
            let key = key.trim();
            (!key.is_empty()).then_some((key, unquote(value.trim())?))
        });
        match pair {
            Some((key, value)) => {
                found.insert(key.to_owned(), value);
            }
            None => odd.push(line.to_owned()),
        }
    }
    (found, odd)
}

/// Undoes Go's `strconv.Quote`. `None` for what it does not write.
fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(char) = rest.next() {
        if char == '"' {
            return None;
        }
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match rest.next()? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            '"' => bytes.push(b'"'),
            // A byte that is no UTF-8 by itself.
            'x' => bytes.push(u8::try_from(hex(&mut rest, 2)?).ok()?),
            'u' => push(&mut bytes, hex(&mut rest, 4)?)?,
            'U' => push(&mut bytes, hex(&mut rest, 8)?)?,
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(rest: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits)
        .try_fold(0u32, |number, _| number.checked_mul(16)?.checked_add(rest.next()?.to_digit(16)?))
}

fn push(bytes: &mut Vec<u8>, code: u32) -> Option<()> {
    let char = char::from_u32(code)?;
    bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_are_unquoted_as_go_quoted_them() {
        for (quoted, value) in [
            (r#""""#, ""),
            (r#""istio-waypoint""#, "istio-waypoint"),
            (r#""a\"b\\c""#, "a\"b\\c"),
            (r#""{\"a\":\n\t\"b\"}""#, "{\"a\":\n\t\"b\"}"),
            (r#""\a\b\f\r\v""#, "\u{7}\u{8}\u{c}\r\u{b}"),
            (r#""caf\u00e9 \U0001F600 \xc3\xa9 é""#, "café 😀 é é"),
        ] {
            assert_eq!(unquote(quoted).as_deref(), Some(value), "{quoted}");
        }
        for broken in ["", "a", r#"""#, r#""a"#, r#""a"b""#, r#""\q""#, r#""\x4""#, r#""\""#] {
            assert_eq!(unquote(broken), None, "{broken}");
        }
        assert_eq!(unquote(r#""\xff""#), None, "no UTF-8");
        assert_eq!(unquote(r#""\ud800""#), None, "no character");
    }

    #[test]
    fn lines_are_read_and_odd_ones_returned() {
        let text = "a.b/c=\"d\"\n\nempty=\"\"\nwith=\"a=b\"\nodd\nbad=x\n=\"y\"\n";
        let (found, odd) = parse(text);
        let found: Vec<_> =
            found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, [("a.b/c", "d"), ("empty", ""), ("with", "a=b")]);
        assert_eq!(odd, ["odd", "bad=x", "=\"y\""]);
        assert_eq!(parse(""), Default::default());
    }
}
