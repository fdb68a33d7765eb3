//! What a query in PromQL asks for: metrics, and the labels that it uses of them.
//!
//! This is no parser; it knows as much as the queries of dashboards need: selectors with matchers,
//! functions, and `by` and `without` with their labels.

use std::collections::BTreeSet;

/// Words that are followed by labels in parentheses.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that stand between expressions.
const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "inf"];

/// What a query uses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Used {
    /// Names of metrics.
    pub metrics: BTreeSet<String>,
    /// Labels by which it chooses, or groups.
    pub labels: BTreeSet<String>,
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(char),
}

/// Reads a query; variables (`$name`) may stand in strings and ranges.
pub fn used(query: &str) -> Used {
    let tokens = tokens(query);
    let mut used = Used::default();
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        place += 1;
        let Token::Word(word) = token else {
            if *token == Token::Sign('{') {
                place = labels(&tokens, place, '}', &mut used);
            }
            continue;
        };
        let open = tokens.get(place) == Some(&Token::Sign('('));
        if GROUPING.contains(&word.as_str()) {
            if open {
                place = labels(&tokens, place + 1, ')', &mut used);
            }
        } else if !open && !OPERATORS.contains(&word.as_str()) && !is_number(word) {
            let grouped = matches!(tokens.get(place), Some(Token::Word(next)) if GROUPING.contains(&next.as_str()));
            if !grouped {
                used.metrics.insert(word.clone());
            }
        }
    }
    used
}

/// Labels up to the sign that ends them; the place behind it.
fn labels(tokens: &[Token], mut place: usize, end: char, used: &mut Used) -> usize {
    while let Some(token) = tokens.get(place) {
        place += 1;
        match token {
            Token::Sign(sign) if *sign == end => break,
            Token::Word(word) => {
                used.labels.insert(word.clone());
            }
            Token::Sign(_) => {}
        }
    }
    place
}

fn is_number(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_digit())
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut characters = query.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => {
                while let Some(next) = characters.next() {
                    if next == '\\' {
                        characters.next();
                    } else if next == character {
                        break;
                    }
                }
            }
            '[' => while characters.next().is_some_and(|next| next != ']') {},
            _ if character.is_alphanumeric() || character == '_' => {
                let mut word = String::from(character);
                while let Some(next) = characters
                    .next_if(|next| next.is_alphanumeric() || matches!(next, '_' | ':' | '.'))
                {
                    word.push(next);
                }
                tokens.push(Token::Word(word));
            }
            _ if character.is_whitespace() => {}
            _ => tokens.push(Token::Sign(character)),
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_labels_are_found() {
        let query = "topk(10, sum by (a, b) (increase(x_total{c=~\"$v (not)\",d!=\"5..|{0}\"}[$__range]))) \
                     / sum(y) by (e) or vector(0) - 0.5 * histogram_quantile(0.99, z_bucket{f=\"\\\"\"})";
        let found = used(query);
        let metrics: Vec<&str> = found.metrics.iter().map(String::as_str).collect();
        let labels: Vec<&str> = found.labels.iter().map(String::as_str).collect();
        assert_eq!(metrics, ["x_total", "y", "z_bucket"]);
        assert_eq!(labels, ["a", "b", "c", "d", "e", "f"]);
    }
}
