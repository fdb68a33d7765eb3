//! The query of a page's address.

use super::super::percent_decoded;

/// Parameters by name, decoded, in their order.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// `None`: an escape is broken, or something is no UTF-8.
    pub fn parse(query: Option<&str>) -> Option<Query> {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decoded(name)?, percent_decoded(value)?))
        });
        decoded.collect::<Option<Vec<_>>>().map(Query)
    }

    /// Value of the first parameter of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Whether it is there, and is no `false` or `0`.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// All of them.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse(Some("a=1&b&a=%20x&c=false&&d=a%3db")).unwrap();
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.pairs().nth(2), Some(("a", " x")));
        assert!(query.is_set("b") && !query.is_set("c") && !query.is_set("e"));
        assert_eq!(query.get("d"), Some("a=b"));
        assert!(Query::parse(Some("a=%zz")).is_none());
        assert_eq!(Query::parse(None).unwrap().pairs().count(), 0);
    }
}
