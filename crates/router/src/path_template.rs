//! Paths with wildcards. Envoy: `path.match.uri_template`.
//!
//! `*` is one segment or a part of one, with at least one character; `**` is any number of segments,
//! and no other wildcard follows it. Unlike Envoy's, both stand for any character, also for those
//! that a path should not have: a DENY policy must not be escaped by one.

use crate::error::Context;
use regex::bytes::Regex;
use std::borrow::Cow;

/// Compiles a template; the error says what is not understood.
pub(crate) fn compile(template: &str, at: &Context) -> Result<Regex, String> {
    if !template.starts_with('/') {
        return Err(format!("`{template}` does not begin with `/`"));
    }
    let mut pattern = String::with_capacity(2 * template.len());
    let mut rest = template;
    let mut has_rest = false;
    while let Some(c) = rest.chars().next() {
        let (length, expression) = match c {
            '{' | '}' => {
                return Err(format!("`{template}` names variables, which are not supported"));
            }
            '*' if has_rest => return Err(format!("`{template}` has a wildcard after `**`")),
            '*' if rest.starts_with("**") => {
                has_rest = true;
                (2, Cow::Borrowed("(?s:.*)"))
            }
            '*' => (1, Cow::Borrowed("[^/]+")),
            c => (c.len_utf8(), Cow::Owned(regex_syntax::escape(c.encode_utf8(&mut [0; 4])))),
        };
        pattern.push_str(&expression);
        rest = rest.get(length..).unwrap_or_default();
    }
    at.patterns().whole(&pattern)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn wildcards() {
        for (template, yes, no) in [
            ("/", &["/"][..], &["", "/a"][..]),
            ("/users/*/profile", &["/users/7/profile", "/users/*]/profile"], &["/users//profile"]),
            ("/users/*/profile", &[], &["/users/a/b/profile", "/users/7/profile/x"]),
            ("/files/**", &["/files/", "/files/a", "/files/a/b", "/files/*x"], &["/files", "/f"]),
            ("/*/*.m4u", &["/a/b.m4u"], &["/a/.m4u", "/a/bxm4u", "/a/b/c.m4u"]),
            ("/**.mpd", &["/a/b/c.mpd", "/.mpd"], &["/a/b/cmpd"]),
            ("/a+b(c)#-&~", &["/a+b(c)#-&~"], &["/aab(c)#-&~"]),
            ("/ä/*", &["/ä/ö"], &["/a/ö"]),
        ] {
            let regex = compile(template, &Context::new()).unwrap();
            for path in yes {
                assert!(regex.is_match(path.as_bytes()), "{template} {path}");
            }
            for path in no {
                assert!(!regex.is_match(path.as_bytes()), "{template} {path}");
            }
        }
    }

    #[test]
    fn what_is_not_understood() {
        for template in ["", "users/*", "/{id}", "/{rest=**}", "/a}", "/**/*", "/***"] {
            assert!(compile(template, &Context::new()).is_err(), "{template}");
        }
    }
}
