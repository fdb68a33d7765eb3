//! Texts that a pattern matches.

use crate::seed::Seed;
use cairn_proto::envoy::envoy::r#type::matcher::v3::StringMatcher;
use cairn_proto::envoy::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use regex_syntax::hir::{Class, Hir, HirKind};

/// A text that this matches.
pub fn text(matcher: &StringMatcher, seed: &mut Seed) -> String {
    let more = seed.word(&["", "x", "-y"]);
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => text.clone(),
        Some(MatchPattern::Prefix(text)) => format!("{text}{more}"),
        Some(MatchPattern::Suffix(text)) => format!("{more}{text}"),
        Some(MatchPattern::Contains(text)) => format!("{more}{text}{more}"),
        Some(MatchPattern::SafeRegex(regex)) => self::regex(&regex.regex, seed),
        Some(MatchPattern::Custom(_)) | None => String::new(),
    }
}

/// It matches this text.
///
/// # Panics
/// When its regular expression is none.
pub fn matches(matcher: &StringMatcher, text: &str) -> bool {
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(whole)) => text == whole,
        Some(MatchPattern::Prefix(part)) => text.starts_with(part),
        Some(MatchPattern::Suffix(part)) => text.ends_with(part),
        Some(MatchPattern::Contains(part)) => text.contains(part),
        Some(MatchPattern::SafeRegex(regex)) => {
            regex::Regex::new(&format!("^(?:{})$", regex.regex)).unwrap().is_match(text)
        }
        Some(MatchPattern::Custom(_)) | None => false,
    }
}

/// A text that a regular expression matches as a whole.
///
/// # Panics
/// When it is none.
pub fn regex(pattern: &str, seed: &mut Seed) -> String {
    let mut text = String::new();
    walk(&regex_syntax::parse(pattern).unwrap(), seed, &mut text);
    text
}

fn walk(hir: &Hir, seed: &mut Seed, out: &mut String) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => out.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(class) => out.push(character(class, seed)),
        HirKind::Repetition(repetition) => {
            let most = repetition.max.unwrap_or(repetition.min + 3).min(repetition.min + 3);
            let spread = (most - repetition.min + 1) as usize;
            for _ in 0..repetition.min as usize + seed.below(spread) {
                walk(&repetition.sub, seed, out);
            }
        }
        HirKind::Capture(capture) => walk(&capture.sub, seed, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| walk(part, seed, out)),
        HirKind::Alternation(parts) => walk(seed.pick(parts), seed, out),
    }
}

/// Of a large class (`.`), letters that are harmless everywhere.
fn character(class: &Class, seed: &mut Seed) -> char {
    let Class::Unicode(class) = class else { return 'a' };
    let harmless = "abcxyz019-";
    let holds = |one: char| class.ranges().iter().any(|r| (r.start()..=r.end()).contains(&one));
    let known: Vec<char> = harmless.chars().filter(|one| holds(*one)).collect();
    match known.as_slice() {
        [] => class.ranges().first().map_or('a', |range| range.start()),
        known => *seed.pick(known),
    }
}
