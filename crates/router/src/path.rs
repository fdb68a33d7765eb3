//! The path as policies, routes and endpoints see it.
//!
//! Envoy normalises with a URL canonicaliser (`normalize_path`), and so does this: dot segments are
//! resolved, percent-encoded unreserved characters are decoded, what may not stand in a path is
//! encoded, a backslash is a slash. `%2F` and `//` stay. Doing it twice changes nothing more, so
//! nobody behind us can see another path than the policies did.

use std::borrow::Cow;

/// A path that is refused: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash, and is not `*`.
    #[error("path does not begin with `/`")]
    NotAbsolute,
    /// It contains `%00` or a control character.
    #[error("path contains a control character")]
    Control,
    /// It contains `#` (Envoy: `http_reject_path_with_fragment`).
    #[error("path contains a fragment")]
    Fragment,
}

/// Normalises a request target's path. A query, from `?` on, stays untouched. `*` (OPTIONS) is
/// given back. With `merge_slashes` runs of slashes become one, after everything else (Envoy).
pub fn normalize(raw: &str, merge_slashes: bool) -> Result<Cow<'_, str>, PathError> {
    let (path, _) = split(raw);
    if path == "*" {
        return Ok(Cow::Borrowed(raw));
    }
    let bytes = path.as_bytes();
    if !matches!(bytes.first(), Some(b'/' | b'\\')) {
        return Err(PathError::NotAbsolute);
    }
    if is_normal(bytes) {
        return Ok(if merge_slashes { self::merge_slashes(raw) } else { Cow::Borrowed(raw) });
    }
    let mut resolved = resolve(bytes)?;
    if merge_slashes {
        resolved.dedup_by(|byte, before| *byte == b'/' && *before == b'/');
    }
    let mut normal = String::from_utf8(resolved).expect("what is not ASCII was percent-encoded");
    normal.push_str(&raw[path.len()..]);
    Ok(Cow::Owned(normal))
}

/// Runs of slashes become one slash; a query stays untouched.
pub fn merge_slashes(raw: &str) -> Cow<'_, str> {
    let (path, _) = split(raw);
    if !path.contains("//") {
        return Cow::Borrowed(raw);
    }
    let mut merged = String::with_capacity(raw.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged.push_str(&raw[path.len()..]);
    Cow::Owned(merged)
}

/// `%2F` and `%5C` become slashes; `None`: there are none. A query stays untouched. (Envoy leaves a
/// backslash for [`normalize`], which makes a slash of it, too.)
pub fn unescape_slashes(raw: &str) -> Option<String> {
    let (path, _) = split(raw);
    let bytes = path.as_bytes();
    let is_slash = |at: usize| matches!(escaped(bytes, at), Some(b'/' | b'\\'));
    let starts = memchr::memchr_iter(b'%', bytes).filter(|at| is_slash(*at));
    let mut unescaped = String::new();
    let mut rest = 0;
    for start in starts {
        unescaped.push_str(&path[rest..start]);
        unescaped.push('/');
        rest = start + 3;
    }
    (rest > 0).then(|| unescaped + &raw[rest..])
}

/// Splits a request target in path and query; the `?` belongs to neither.
pub fn split(path_and_query: &str) -> (&str, Option<&str>) {
    match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    }
}

/// Nothing but plain characters, and no segment that begins with a dot.
fn is_normal(path: &[u8]) -> bool {
    let following = path.iter().skip(1).chain(std::iter::once(&b'/'));
    path.iter().zip(following).all(|(&byte, &next)| {
        is_unreserved(byte) || is_plain_punctuation(byte) || (byte == b'/' && next != b'.')
    })
}

fn resolve(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len() + 16);
    // Where the last `%` went that begins no escape.
    let mut bare_percent = None;
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if let Some(dot) = dot_len(path, at) {
            let after = at + dot;
            if out.last() != Some(&b'/') {
                out.push(b'.');
                at = after;
            } else if let Some(slash) = end_len(path, after) {
                at = after + slash;
            } else if let Some((second, slash)) = dot_len(path, after)
                .and_then(|second| Some((second, end_len(path, after + second)?)))
            {
                out.pop();
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
                out.push(b'/');
                bare_percent = bare_percent.filter(|index| *index < out.len());
                at = after + second + slash;
            } else {
                out.push(b'.');
                at = after;
            }
            continue;
        }
        match byte {
            b'/' | b'\\' => out.push(b'/'),
            b'%' => match escaped(path, at) {
                Some(0) => return Err(PathError::Control),
                Some(decoded)
                    if is_unreserved(decoded) && !completes(&out, bare_percent, decoded) =>
                {
                    out.push(decoded);
                    at += 2;
                }
                Some(_) => {
                    out.extend_from_slice(&path[at..at + 3]);
                    at += 2;
                }
                None => {
                    bare_percent = Some(out.len());
                    out.push(b'%');
                }
            },
            b'#' => return Err(PathError::Fragment),
            _ if byte.is_ascii_control() => return Err(PathError::Control),
            _ if is_unreserved(byte) || is_plain_punctuation(byte) => out.push(byte),
            _ => out.extend_from_slice(&[b'%', upper_hex(byte >> 4), upper_hex(byte & 15)]),
        }
        at += 1;
    }
    Ok(out)
}

/// Length of a dot or `%2e` at `at`.
fn dot_len(path: &[u8], at: usize) -> Option<usize> {
    match path.get(at..)? {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'e' | b'E', ..] => Some(3),
        _ => None,
    }
}

/// Length of what ends a segment at `at`: a slash, or nothing at the path's end; parameters (`..;v=1`) count to it, as
/// they do in Envoy and in servers that leave them out before they resolve dots.
fn end_len(path: &[u8], at: usize) -> Option<usize> {
    match path.get(at) {
        None => Some(0),
        Some(b'/' | b'\\') => Some(1),
        Some(b';') => {
            let rest = path.get(at..)?;
            let slash = rest.iter().position(|byte| *byte == b'/');
            let length = slash.unwrap_or(rest.len());
            let refused = |(offset, byte): (usize, &u8)| {
                *byte == b'#' || byte.is_ascii_control() || escaped(path, at + offset) == Some(0)
            };
            // What is refused is not dropped unseen.
            let sound = !rest.iter().take(length).enumerate().any(refused);
            sound.then_some(length + usize::from(slash.is_some()))
        }
        Some(_) => None,
    }
}

/// Value of the escape that begins at `at`.
fn escaped(path: &[u8], at: usize) -> Option<u8> {
    let digit = |offset: usize| {
        let byte = *path.get(at + offset)?;
        char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
    };
    Some(digit(1)? * 16 + digit(2)?)
}

/// `decoded` would make an escape of a `%` that was none (`%%36` `1` → `%61`), and the next reader
/// would decode that once more.
fn completes(out: &[u8], bare_percent: Option<usize>, decoded: u8) -> bool {
    decoded.is_ascii_hexdigit() && bare_percent.is_some_and(|percent| out.len() - percent <= 2)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What stays as it is, encoded or not.
fn is_plain_punctuation(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'*'
            | b'+'
            | b','
            | b':'
            | b';'
            | b'='
            | b'@'
            | b'['
            | b']'
    )
}

fn upper_hex(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0' + nibble,
        _ => b'A' + nibble - 10,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(raw: &str, expected: &str) {
        assert_eq!(normalize(raw, false).as_deref(), Ok(expected), "{raw}");
    }

    #[test]
    fn escaped_slashes() {
        for (raw, expected) in [
            ("/a/b", None),
            ("/a%2eb", None),
            ("/a?b=%2F", None),
            ("/%2", None),
            ("/a%2Fb", Some("/a/b")),
            ("/a%2fb%5C%5cc%20?x=%2F", Some("/a/b//c%20?x=%2F")),
            ("/%2F%2e%2e%2Fb%", Some("//%2e%2e/b%")),
            ("/%252F", None),
        ] {
            assert_eq!(unescape_slashes(raw).as_deref(), expected, "{raw}");
        }
    }

    #[test]
    fn as_envoy() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("/../../..", "/"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/%2e./b", "/b"),
            ("/a/.%2e", "/"),
            ("/%2e", "/"),
            ("/a/.../b", "/a/.../b"),
            ("/a/..;v=1", "/"),
            ("/a/..;v=1/b", "/b"),
            ("/a/b/.;/c", "/a/b/c"),
            ("/..;/..;x\\y", "/"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a..;/...;/;", "/a..;/...;/;"),
            ("/a/..%3b/b", "/a/..%3b/b"),
            ("/a/..b", "/a/..b"),
            ("/.well-known", "/.well-known"),
            ("/a%2eb", "/a.b"),
            ("/%61%7e%5f", "/a~_"),
            ("/a\\b", "/a/b"),
            ("/a\\..\\b", "/b"),
            ("\\a", "/a"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("//../a", "/a"),
            ("/a%2Fb%2f..%5c", "/a%2Fb%2f..%5c"),
            ("/a/..%2fb", "/a/..%2fb"),
            ("/%zz%4", "/%zz%4"),
            ("/a b\"<>^`{|}", "/a%20b%22%3C%3E%5E%60%7B%7C%7D"),
            ("/é", "/%C3%A9"),
            ("/%c3%a9", "/%c3%a9"),
            ("/a?x=/../%61#\\", "/a?x=/../%61#\\"),
            ("/b/../a?x=/../%61", "/a?x=/../%61"),
            ("/%0a", "/%0a"),
            ("/[a]:@!$&'()*+,;=", "/[a]:@!$&'()*+,;="),
        ] {
            check(raw, expected);
        }
    }

    #[test]
    fn decoding_makes_no_new_escape() {
        for raw in ["/%%361", "/%3%31", "/%%32e/"] {
            check(raw, raw);
        }
        check("/%%36%31", "/%%361");
        check("/%%36g/%61", "/%%36g/a");
        check("/%/../%61", "/a");
    }

    #[test]
    fn refused() {
        assert_eq!(normalize("", false), Err(PathError::NotAbsolute));
        assert_eq!(normalize("a", false), Err(PathError::NotAbsolute));
        assert_eq!(normalize("?a", false), Err(PathError::NotAbsolute));
        assert_eq!(normalize("/%00", false), Err(PathError::Control));
        assert_eq!(normalize("/a\u{1}", false), Err(PathError::Control));
        assert_eq!(normalize("/a\u{7f}", false), Err(PathError::Control));
        assert_eq!(normalize("/a#b", false), Err(PathError::Fragment));
    }

    #[test]
    fn options_star() {
        check("*", "*");
        assert_eq!(normalize("**", true), Err(PathError::NotAbsolute));
    }

    #[test]
    fn slashes() {
        let merge = |raw| normalize(raw, true).unwrap().into_owned();
        assert_eq!(merge("//a///b//?x//y"), "/a/b/?x//y");
        assert_eq!(merge("//"), "/");
        assert_eq!(merge("/a//../b"), "/a/b", "dot segments first");
        assert_eq!(merge("/a\\\\b"), "/a/b");
        assert_eq!(merge_slashes("//%61//../?//"), "/%61/../?//");
    }

    #[test]
    fn nothing_is_copied_without_need() {
        for raw in ["/a/b.c/~d-e_f?x=%00", "*", "/a//b", "/file..txt"] {
            assert!(
                matches!(normalize(raw, false), Ok(Cow::Borrowed(same)) if same == raw),
                "{raw}"
            );
        }
    }

    fn tricky() -> impl Strategy<Value = String> {
        let tokens = prop::sample::select(vec![
            "/", "//", "\\", ".", "..", "%2e", "%2E", "%2f", "%5c", "%", ";", "%%", "%6", "1",
            "61", "e", "f", "%61", "%31", "%36", "%25", "%zz", "a", "?", " ", "é", "%c3", "~", "{",
            "*", "g",
        ]);
        prop::collection::vec(tokens, 0..14).prop_map(|tokens| format!("/{}", tokens.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn twice_is_once(raw in tricky(), merge: bool) {
            let once = normalize(&raw, merge).unwrap().into_owned();
            let twice = normalize(&once, merge).unwrap();
            prop_assert_eq!(&once, &twice);
            let (path, query) = split(&once);
            prop_assert_eq!(query, split(&raw).1);
            prop_assert!(path.starts_with('/') && path.is_ascii());
            prop_assert!(!path.contains('\\'));
            prop_assert!(!path.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!merge || !path.contains("//"));
            if is_normal(path.as_bytes()) {
                prop_assert_eq!(resolve(path.as_bytes()), Ok(path.as_bytes().to_vec()));
            }
        }

        #[test]
        fn never_panics(raw in any::<String>(), merge: bool) {
            let _ = normalize(&raw, merge);
            let _ = normalize(&format!("/{raw}"), merge);
            let _ = merge_slashes(&raw);
        }
    }
}
