//! Header matchers, string matchers and header changes.

use cairn_proto::envoy as pb;
use cairn_router::format::Format;
use cairn_router::spec::{
    HeaderAppend, HeaderMatch, HeaderOps, HeaderValue, StringMatch, ValueMatch,
};
use pb::envoy::config::core::v3::HeaderValueOption;
use pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use pb::envoy::config::route::v3::HeaderMatcher;
use pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier as Specifier;
use pb::envoy::r#type::matcher::v3::StringMatcher;
use pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

/// Operators that Istio writes for what the tunnel is known by, and their names here.
const PRINCIPALS: [(&str, &str); 2] = [
    ("%FILTER_STATE(io.istio.peer_principal:PLAIN)%", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("%FILTER_STATE(io.istio.local_principal:PLAIN)%", "%DOWNSTREAM_LOCAL_URI_SAN%"),
];

/// A string matcher, and whether it disregards case. The error says what is not understood.
pub(super) fn string(matcher: &StringMatcher) -> Result<(StringMatch, bool), String> {
    let StringMatcher { ignore_case, match_pattern } = matcher;
    let part = |text: &String, kind: fn(String) -> StringMatch| match text.as_str() {
        "" => Err("an empty text that would match everything".to_owned()),
        _ => Ok(kind(text.clone())),
    };
    let pattern = match match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(StringMatch::Exact(text.clone())),
        Some(MatchPattern::Prefix(text)) => part(text, StringMatch::Prefix),
        Some(MatchPattern::Suffix(text)) => part(text, StringMatch::Suffix),
        Some(MatchPattern::Contains(text)) => part(text, StringMatch::Contains),
        Some(MatchPattern::SafeRegex(regex)) => part(&regex.regex, StringMatch::Regex),
        Some(MatchPattern::Custom(custom)) => Err(format!("the string matcher `{}`", custom.name)),
        None => Err("a string matcher without a pattern".to_owned()),
    }?;
    // Envoy: `ignore_case` has no effect on regular expressions.
    let ignore_case = *ignore_case && !matches!(pattern, StringMatch::Regex(_));
    Ok((pattern, ignore_case))
}

/// A string matcher where case cannot be disregarded.
pub(super) fn exact_case(matcher: &StringMatcher) -> Result<StringMatch, String> {
    match string(matcher)? {
        (pattern, false) => Ok(pattern),
        (_, true) => Err("a string matcher without regard to case".to_owned()),
    }
}

/// The same, where presence may be asked, too.
pub(super) fn value(matcher: StringMatch) -> ValueMatch {
    match matcher {
        StringMatch::Exact(text) => ValueMatch::Exact(text),
        StringMatch::Prefix(text) => ValueMatch::Prefix(text),
        StringMatch::Suffix(text) => ValueMatch::Suffix(text),
        StringMatch::Contains(text) => ValueMatch::Contains(text),
        StringMatch::Regex(pattern) => ValueMatch::Regex(pattern),
    }
}

/// A header matcher. The error says what is not understood.
#[allow(deprecated)]
pub(super) fn header(matcher: &HeaderMatcher) -> Result<HeaderMatch, String> {
    let HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
        matcher;
    let part = |text: &String, kind: fn(String) -> ValueMatch| match text.as_str() {
        "" => Err("an empty text that would match everything".to_owned()),
        _ => Ok((kind(text.clone()), false)),
    };
    let (value, ignore_case) = match header_match_specifier {
        // Envoy: without a condition the header has to be there.
        None => Ok((ValueMatch::Present(true), false)),
        Some(Specifier::PresentMatch(present)) => Ok((ValueMatch::Present(*present), false)),
        Some(Specifier::StringMatch(matcher)) => {
            string(matcher).map(|(pattern, ignore_case)| (value(pattern), ignore_case))
        }
        Some(Specifier::ExactMatch(text)) => Ok((ValueMatch::Exact(text.clone()), false)),
        Some(Specifier::PrefixMatch(text)) => part(text, ValueMatch::Prefix),
        Some(Specifier::SuffixMatch(text)) => part(text, ValueMatch::Suffix),
        Some(Specifier::ContainsMatch(text)) => part(text, ValueMatch::Contains),
        Some(Specifier::SafeRegexMatch(regex)) => part(&regex.regex, ValueMatch::Regex),
        Some(Specifier::RangeMatch(_)) => Err("a range of a header's values".to_owned()),
    }
    .map_err(|what| format!("{what} (header `{name}`)"))?;
    if name.is_empty() {
        return Err("a header matcher without a name".to_owned());
    }
    Ok(HeaderMatch {
        name: name.clone(),
        value,
        invert: *invert_match,
        treat_missing_as_empty: *treat_missing_header_as_empty,
        ignore_case,
    })
}

/// One header to put. The error says what is not understood.
#[allow(deprecated)]
pub(super) fn put(option: &HeaderValueOption) -> Result<HeaderValue, String> {
    let HeaderValueOption { header, append, append_action, keep_empty_value: _ } = option;
    let Some(header) = header else { return Err("a header change without a header".to_owned()) };
    let pb::envoy::config::core::v3::HeaderValue { key, value, raw_value } = header;
    let value = match (value.as_str(), raw_value.as_slice()) {
        (value, []) => value.to_owned(),
        (_, raw) => std::str::from_utf8(raw)
            .map_err(|_| format!("a value of `{key}` that is no UTF-8"))?
            .to_owned(),
    };
    let action = match append {
        Some(append) if append.value => HeaderAppend::Append,
        Some(_) => HeaderAppend::Overwrite,
        None => match HeaderAppendAction::try_from(*append_action) {
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => HeaderAppend::Append,
            Ok(HeaderAppendAction::AddIfAbsent) => HeaderAppend::AddIfAbsent,
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => HeaderAppend::Overwrite,
            Ok(HeaderAppendAction::OverwriteIfExists) => HeaderAppend::OverwriteIfExists,
            Err(_) => return Err(format!("the append action {append_action} (header `{key}`)")),
        },
    };
    Ok(HeaderValue { name: key.clone(), value: format(&value)?, action })
}

/// Changes of headers. The error says what is not understood.
pub(super) fn ops(add: &[HeaderValueOption], remove: &[String]) -> Result<HeaderOps, String> {
    let add = add.iter().map(put).collect::<Result<_, _>>()?;
    Ok(HeaderOps { add, remove: remove.to_vec() })
}

/// A text with operators, with Istio's names for principals replaced. The error says what is not understood.
fn format(text: &str) -> Result<String, String> {
    let mut text = text.to_owned();
    for (theirs, ours) in PRINCIPALS {
        if text.contains(theirs) {
            text = text.replace(theirs, ours);
        }
    }
    Format::parse(&text)?;
    Ok(text)
}
