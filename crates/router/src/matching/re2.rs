//! Regular expressions as Envoy reads them: RE2 syntax and semantics.
//!
//! The engine is the `regex` crate, which descends from RE2 but reads some patterns otherwise. A
//! difference that is silent could open a policy, so patterns are translated:
//!
//! * `\d \w \s \b` and their complements are ASCII, and `\s` has no vertical tab;
//! * in a class `[`, `&&`, `--` and `~~` are characters, not set operations;
//! * `\<`, `\>` and a `{` that counts nothing are characters; `\Q…\E` quotes.
//!
//! Matching takes time linear in the text, and a program is bounded in size.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::hir::literal::Extractor;

/// Bound of one compiled pattern in bytes.
pub(crate) const SIZE_LIMIT: usize = 1 << 20;
/// Bound of what one pattern caches per thread, in bytes.
const CACHE_LIMIT: usize = 1 << 18;

const DIGITS: &str = "0-9";
const WORD: &str = "0-9A-Za-z_";
const SPACES: &str = "\\t\\n\\x0C\\r ";

/// Compiles a pattern that the whole text must match.
pub(crate) fn whole(pattern: &str) -> Result<Regex, String> {
    build(&anchored(pattern)?)
}

/// Compiles a pattern that is searched for.
pub(crate) fn search(pattern: &str) -> Result<Regex, String> {
    build(&translate(pattern)?)
}

/// Bytes with which everything begins that the [`whole`] pattern matches.
pub(crate) fn literal_prefix(pattern: &str) -> Vec<u8> {
    let parse = |unicode: bool, pattern: &str| {
        let mut parser = regex_syntax::ParserBuilder::new();
        parser.unicode(unicode).utf8(false).build().parse(pattern).ok()
    };
    let Ok(pattern) = anchored(pattern) else { return Vec::new() };
    let Some(hir) = parse(false, &pattern).or_else(|| parse(true, &pattern)) else {
        return Vec::new();
    };
    let literals = Extractor::new().extract(&hir);
    literals.longest_common_prefix().map(<[u8]>::to_vec).unwrap_or_default()
}

fn anchored(pattern: &str) -> Result<String, String> {
    // The translation refuses unbalanced parentheses, so the group cannot be left.
    Ok(format!("\\A(?:{})\\z", translate(pattern)?))
}

fn build(pattern: &str) -> Result<Regex, String> {
    let build = |unicode: bool| {
        let mut builder = RegexBuilder::new(pattern);
        builder.unicode(unicode).size_limit(SIZE_LIMIT).dfa_size_limit(CACHE_LIMIT).build()
    };
    // Bytes are smaller and faster; patterns that name other characters need Unicode.
    match build(false) {
        Err(regex::Error::Syntax(_)) => build(true),
        built => built,
    }
    .map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("is larger than {limit} bytes when compiled; repeat less in it")
        }
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    })
}

fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut depth = 0_usize;
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => escape(tail, &mut out)?,
            '[' => class(tail, &mut out)?,
            '(' => {
                depth += 1;
                out.push(c);
                check_flags(tail)?;
                tail
            }
            ')' => {
                depth = depth.checked_sub(1).ok_or("has a `)` without `(`")?;
                out.push(c);
                tail
            }
            '{' if !counts(tail) => {
                out.push_str("\\{");
                tail
            }
            _ => {
                out.push(c);
                tail
            }
        };
    }
    if depth > 0 {
        return Err("has a `(` without `)`".to_owned());
    }
    Ok(out)
}

/// After `(`: RE2 knows the flags `imsU` only.
fn check_flags(tail: &str) -> Result<(), String> {
    let Some(flags) = tail.strip_prefix('?') else { return Ok(()) };
    let unknown = flags
        .chars()
        .take_while(|c| c.is_ascii_alphabetic() || *c == '-')
        .find(|c| !matches!(c, 'i' | 'm' | 's' | 'U' | '-'));
    match unknown {
        Some('P') | None => Ok(()),
        Some(flag) => Err(format!("has the unknown flag `{flag}`")),
    }
}

/// After `{`: `n}`, `n,}` or `n,m}`.
fn counts(tail: &str) -> bool {
    let Some((inside, _)) = tail.split_once('}') else { return false };
    let (from, to) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !from.is_empty() && digits(from) && digits(to)
}

/// After `\`, outside of classes.
fn escape<'a>(tail: &'a str, out: &mut String) -> Result<&'a str, String> {
    let Some(c) = tail.chars().next() else {
        return Err("ends with a backslash".to_owned());
    };
    let after = &tail[c.len_utf8()..];
    match c {
        'Q' => {
            let (quoted, after) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(quoted));
            return Ok(after);
        }
        'd' | 'w' | 's' | 'D' | 'W' | 'S' => out.push_str(&perl_class(c)),
        'b' | 'B' => {
            out.push_str("(?-u:\\");
            out.push(c);
            out.push(')');
        }
        '<' | '>' => out.push(c),
        _ => return Ok(plain_escape(c, after, out)),
    }
    Ok(after)
}

/// An escape that both sides read alike, with what belongs to it.
fn plain_escape<'a>(c: char, after: &'a str, out: &mut String) -> &'a str {
    out.push('\\');
    out.push(c);
    let argument = match c {
        'x' | 'p' | 'P' if after.starts_with('{') => after.find('}').map_or(0, |end| end + 1),
        'x' => after.bytes().take(2).take_while(u8::is_ascii_hexdigit).count(),
        'p' | 'P' => after.chars().next().map_or(0, char::len_utf8),
        _ => 0,
    };
    out.push_str(&after[..argument]);
    &after[argument..]
}

fn perl_class(c: char) -> String {
    let members = match c.to_ascii_lowercase() {
        'd' => DIGITS,
        'w' => WORD,
        _ => SPACES,
    };
    format!("[{}{members}]", if c.is_ascii_uppercase() { "^" } else { "" })
}

/// After `[`, up to its `]`.
fn class<'a>(tail: &'a str, out: &mut String) -> Result<&'a str, String> {
    out.push('[');
    let mut rest = tail;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    loop {
        if let Some(after) = rest.strip_prefix(']').filter(|_| !first) {
            out.push(']');
            return Ok(after);
        }
        first = false;
        let (after, single) = class_atom(rest, out)?;
        rest = after;
        let end = rest.strip_prefix('-').filter(|end| !end.is_empty() && !end.starts_with(']'));
        if let (true, Some(end)) = (single, end) {
            out.push('-');
            let (after, single) = class_atom(end, out)?;
            if !single {
                return Err("has a range that ends with a class".to_owned());
            }
            rest = after;
        }
    }
}

/// One member of a class, and whether it is a single character.
fn class_atom<'a>(rest: &'a str, out: &mut String) -> Result<(&'a str, bool), String> {
    let Some(c) = rest.chars().next() else {
        return Err("has a `[` without `]`".to_owned());
    };
    let after = &rest[c.len_utf8()..];
    match c {
        '[' if after.starts_with(':') && after.contains(":]") => {
            let end = after.find(":]").map_or(0, |end| end + 2);
            out.push('[');
            out.push_str(&after[..end]);
            Ok((&after[end..], false))
        }
        '\\' => {
            let Some(escaped) = after.chars().next() else {
                return Err("ends with a backslash".to_owned());
            };
            let after = &after[escaped.len_utf8()..];
            match escaped {
                'd' | 'w' | 's' | 'D' | 'W' | 'S' => {
                    out.push_str(&perl_class(escaped));
                    Ok((after, false))
                }
                '<' | '>' => {
                    out.push(escaped);
                    Ok((after, true))
                }
                _ => Ok((plain_escape(escaped, after, out), !matches!(escaped, 'p' | 'P'))),
            }
        }
        _ => {
            if matches!(c, '[' | ']' | '^' | '-' | '&' | '~') {
                out.push('\\');
            }
            out.push(c);
            Ok((after, true))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[track_caller]
    fn matches(pattern: &str, yes: &[&str], no: &[&str]) {
        let regex = whole(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let prefix = literal_prefix(pattern);
        for text in yes {
            assert!(regex.is_match(text.as_bytes()), "{pattern} {text}");
            assert!(text.as_bytes().starts_with(&prefix), "{pattern} {text} {prefix:?}");
        }
        for text in no {
            assert!(!regex.is_match(text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn the_whole_text() {
        matches("a|b", &["a", "b"], &["ab", "xa", ""]);
        matches(
            "/item/[0-9]+(/.*)?",
            &["/item/1", "/item/12/x"],
            &["/item/", "/item/1x", "x/item/1"],
        );
        matches("^/a$", &["/a"], &["/a\n", "/b"]);
        matches("", &[""], &["a"]);
        matches("a.b", &["axb"], &["a\nb", "ab"]);
        matches("(?s)a.b", &["a\nb"], &[]);
        matches("(?i)/Ab", &["/aB"], &[]);
    }

    #[test]
    fn as_re2() {
        matches(r"\d+", &["12"], &["١"]);
        matches(r"\w", &["a", "_"], &["é", "ä"]);
        matches(r"[\w-]+", &["a-b"], &["é"]);
        matches(r"é\w", &["éa"], &["éé"]);
        matches(r"[^\d]x", &["ax"], &["1x"]);
        matches(r"a\sb", &["a b", "a\tb"], &["a\u{b}b"]);
        matches(r"[[]", &["["], &["x"]);
        matches(r"[a[b]", &["a", "[", "b"], &["]"]);
        matches(r"[a&&b]", &["a", "&", "b"], &[]);
        matches(r"[a~~b]", &["a", "~", "b"], &[]);
        matches(r"[--/]", &["-", ".", "/"], &["0", ","]);
        matches(r"[a-c-e]", &["a", "b", "-", "e"], &["d"]);
        matches(r"[]a]", &["]", "a"], &[]);
        matches(r"[^]a]", &["b"], &["]", "a"]);
        matches(r"[[:alpha:]_-]", &["a", "_", "-"], &["1"]);
        matches(r"[\x41-\x43\]]", &["A", "C", "]"], &["D"]);
        matches(r"[\pL]", &["é"], &["1"]);
        matches(r"\x{e9}", &["é"], &[]);
        matches(r"\<a\>", &["<a>"], &["a"]);
        matches("/v1/{id}", &["/v1/{id}"], &["/v1/x"]);
        matches("a{2}", &["aa"], &["a{2}"]);
        matches("a{2,}", &["aaa"], &["a"]);
        matches("a{,2}", &["a{,2}"], &["a"]);
        matches(r"\Qa.b(\E.", &["a.b(x"], &["axb(x"]);
        matches(r"\ba\b", &["a"], &[]);
        matches(r"(?P<n>a)(?:b)", &["ab"], &[]);
    }

    #[test]
    fn refused_with_a_reason() {
        for (pattern, reason) in [
            ("a)|(b", "has a `)` without `(`"),
            ("(a", "has a `(` without `)`"),
            ("[a", "has a `[` without `]`"),
            ("a\\", "ends with a backslash"),
            ("(?x)a", "has the unknown flag `x`"),
            ("(?R)a", "has the unknown flag `R`"),
            ("*a", "repetition operator missing expression"),
            ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            (r"(a)\1", "backreferences are not supported"),
        ] {
            assert_eq!(whole(pattern).map(|_| ()), Err(reason.to_owned()), "{pattern}");
        }
        let error = whole("((a{100}){100}){100}").unwrap_err();
        assert!(error.starts_with("is larger than 1048576 bytes"), "{error}");
    }

    #[test]
    fn prefixes() {
        assert_eq!(literal_prefix("/item/[0-9]+"), b"/item/");
        assert_eq!(literal_prefix("/(ab|ac)/x"), b"/a");
        assert_eq!(literal_prefix(".*"), b"");
        assert_eq!(literal_prefix("(?i)/a"), b"/");
        assert_eq!(literal_prefix("(a"), b"");
    }
}
