//! Finds the first route whose path fits, in time proportional to the path.
//!
//! Routes are tried in their order (Envoy), but only those whose path can fit are looked at: exact
//! paths through a hash map, prefixes through a byte radix trie in which a lookup walks along the
//! path. A regular expression sits in the trie at the text with which all its matches begin. Every
//! place holds route numbers in ascending order; a place is left as soon as its numbers are not
//! below the best route so far, so the result is the lowest number: Envoy's first match.

use crate::matching::re2;
use ahash::AHashMap;
use regex::bytes::Regex;

/// Paths up to this length in bytes are folded to lower case on the stack.
const FOLD_ON_STACK: usize = 512;

/// Where the routes of one virtual host are, by path.
#[derive(Debug, Default)]
pub(crate) struct RouteIndex {
    sensitive: Paths,
    /// Exact paths and prefixes in lower case.
    folded: Paths,
    regexes: Vec<(u32, Regex)>,
}

/// How the path of one route is compared.
#[derive(Debug)]
pub(crate) enum PathKey<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    PathSeparatedPrefix(&'a str),
    Regex(&'a str, Regex),
}

#[derive(Debug, Default)]
struct Paths {
    exact: AHashMap<Box<[u8]>, Vec<u32>>,
    trie: Trie,
}

/// The root comes first.
#[derive(Debug)]
struct Trie(Vec<Node>);

/// A place in the trie. What hangs on it applies to paths that begin with the labels up to here.
#[derive(Debug)]
struct Node {
    label: Box<[u8]>,
    /// Positions in the trie, by the first byte of their labels.
    children: Vec<(u8, usize)>,
    prefixes: Vec<u32>,
    /// Apply if the path ends here or goes on with a slash.
    separated: Vec<u32>,
    /// Positions in `RouteIndex::regexes`, whose patterns have to be tried.
    regexes: Vec<u32>,
    /// Lowest route number here and below.
    lowest: u32,
}

/// The best route so far, and how routes are judged that fit by path.
struct Search<'a, F> {
    best: u32,
    regexes: &'a [(u32, Regex)],
    fits: F,
}

impl RouteIndex {
    /// Adds the next route; numbers ascend.
    pub(crate) fn push(&mut self, route: u32, path: PathKey<'_>, case_sensitive: bool) {
        let fold = |text: &str| match case_sensitive {
            true => text.as_bytes().to_vec(),
            false => text.to_ascii_lowercase().into_bytes(),
        };
        let paths = if case_sensitive { &mut self.sensitive } else { &mut self.folded };
        match path {
            PathKey::Exact(text) => {
                paths.exact.entry(fold(text).into_boxed_slice()).or_default().push(route);
                paths.trie.at(b"", route);
            }
            PathKey::Prefix(text) => paths.trie.at(&fold(text), route).prefixes.push(route),
            PathKey::PathSeparatedPrefix(text) => {
                paths.trie.at(&fold(text), route).separated.push(route);
            }
            PathKey::Regex(pattern, regex) => {
                let place = self.sensitive.trie.at(&re2::literal_prefix(pattern), route);
                place.regexes.push(u32::try_from(self.regexes.len()).unwrap_or(u32::MAX));
                self.regexes.push((route, regex));
            }
        }
    }

    /// The first route whose path fits and that `fits` otherwise.
    pub(crate) fn find(&self, path: &[u8], fits: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut search = Search { best: u32::MAX, regexes: &self.regexes, fits };
        self.sensitive.search(path, path, &mut search);
        if self.folded.trie.lowest() < search.best {
            let mut stack = [0; FOLD_ON_STACK];
            let mut heap = Vec::new();
            let folded = match stack.get_mut(..path.len()) {
                Some(stack) => stack,
                None => {
                    heap.resize(path.len(), 0);
                    heap.as_mut_slice()
                }
            };
            folded.copy_from_slice(path);
            folded.make_ascii_lowercase();
            self.folded.search(folded, path, &mut search);
        }
        (search.best < u32::MAX).then_some(search.best)
    }
}

impl Paths {
    fn search<F: FnMut(u32) -> bool>(
        &self,
        path: &[u8],
        original: &[u8],
        search: &mut Search<'_, F>,
    ) {
        if let Some(routes) = self.exact.get(path) {
            search.first_of(routes);
        }
        let mut here = Some(0);
        let mut rest = path;
        while let Some(node) = here.and_then(|here| self.trie.0.get(here)) {
            let Some(below) = rest.strip_prefix(&*node.label) else { return };
            if node.lowest >= search.best {
                return;
            }
            rest = below;
            search.first_of(&node.prefixes);
            if matches!(rest.first(), None | Some(b'/')) {
                search.first_of(&node.separated);
            }
            search.first_regex(&node.regexes, original);
            here = rest.first().and_then(|byte| node.child(*byte).ok());
        }
    }
}

impl Default for Trie {
    fn default() -> Self {
        Trie(vec![Node::new(b"", u32::MAX)])
    }
}

impl Trie {
    fn lowest(&self) -> u32 {
        self.0.first().map_or(u32::MAX, |root| root.lowest)
    }

    /// The place of `text`, for `route`.
    fn at(&mut self, text: &[u8], route: u32) -> &mut Node {
        let mut here = 0;
        let mut rest = text;
        loop {
            let node = &mut self.0[here];
            node.lowest = node.lowest.min(route);
            let Some(byte) = rest.first() else { return &mut self.0[here] };
            here = match node.child(*byte) {
                Ok(child) => child,
                Err(place) => {
                    let child = self.0.len();
                    self.0[here].children.insert(place, (*byte, child));
                    self.0.push(Node::new(rest, route));
                    child
                }
            };
            let label = &self.0[here].label;
            let common = label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < label.len() {
                self.split(here, common);
            }
            rest = &rest[common..];
        }
    }

    /// Leaves `keep` bytes of a label where it is, less than all; what hangs there moves below.
    fn split(&mut self, at: usize, keep: usize) {
        let child = self.0.len();
        let node = &mut self.0[at];
        let above = Node::new(&node.label[..keep], node.lowest);
        let mut below = std::mem::replace(node, above);
        node.children.push((below.label[keep], child));
        below.label = below.label[keep..].into();
        self.0.push(below);
    }
}

impl Node {
    fn new(label: &[u8], lowest: u32) -> Node {
        Node {
            label: label.into(),
            children: Vec::new(),
            prefixes: Vec::new(),
            separated: Vec::new(),
            regexes: Vec::new(),
            lowest,
        }
    }

    /// Position of the child whose label begins with `byte`, or its place among the children.
    fn child(&self, byte: u8) -> Result<usize, usize> {
        let place = self.children.binary_search_by_key(&byte, |(first, _)| *first)?;
        Ok(self.children[place].1)
    }
}

impl<F: FnMut(u32) -> bool> Search<'_, F> {
    fn first_of(&mut self, routes: &[u32]) {
        for &route in routes {
            if route >= self.best {
                return;
            }
            if (self.fits)(route) {
                self.best = route;
                return;
            }
        }
    }

    fn first_regex(&mut self, positions: &[u32], path: &[u8]) {
        let all = self.regexes;
        for (route, regex) in positions.iter().filter_map(|at| all.get(*at as usize)) {
            if *route >= self.best {
                return;
            }
            if regex.is_match(path) && (self.fits)(*route) {
                self.best = *route;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(paths: &[(&str, &str, bool)]) -> RouteIndex {
        let mut index = RouteIndex::default();
        for (route, (kind, text, case_sensitive)) in paths.iter().enumerate() {
            let key = match *kind {
                "exact" => PathKey::Exact(text),
                "prefix" => PathKey::Prefix(text),
                "separated" => PathKey::PathSeparatedPrefix(text),
                _ => PathKey::Regex(text, re2::whole(text).expect("valid in tests")),
            };
            index.push(u32::try_from(route).expect("few"), key, *case_sensitive);
        }
        index
    }

    #[test]
    fn lowest_number_wins() {
        let index = index(&[
            ("regex", "/a/[0-9]+", true), // 0
            ("exact", "/a/b", true),      // 1
            ("separated", "/a", true),    // 2
            ("prefix", "/a", true),       // 3
            ("exact", "/a/b", true),      // 4
            ("regex", ".*b", true),       // 5
            ("prefix", "/", true),        // 6
            ("prefix", "", true),         // 7
        ]);
        let first = |path: &str| index.find(path.as_bytes(), |_| true);
        assert_eq!(first("/a/12"), Some(0));
        assert_eq!(first("/a/b"), Some(1));
        assert_eq!(first("/a/x"), Some(2));
        assert_eq!(first("/a"), Some(2));
        assert_eq!(first("/a/"), Some(2));
        assert_eq!(first("/ab"), Some(3));
        assert_eq!(first("/xb"), Some(5));
        assert_eq!(first("/x"), Some(6));
        assert_eq!(first("*"), Some(7));
        let fits = |path: &str| {
            let mut seen = Vec::new();
            index.find(path.as_bytes(), |route| {
                seen.push(route);
                false
            });
            seen.sort_unstable();
            seen
        };
        assert_eq!(fits("/a/b"), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(fits("/a/1"), [0, 2, 3, 6, 7]);
    }

    #[test]
    fn without_regard_to_case() {
        let index = index(&[
            ("exact", "/Ab", false),
            ("prefix", "/ab/", true),
            ("separated", "/AB", false),
            ("regex", "/x[a-c]", false),
        ]);
        let first = |path: &str| index.find(path.as_bytes(), |_| true);
        assert_eq!(first("/aB"), Some(0));
        assert_eq!(first("/ab/x"), Some(1));
        assert_eq!(first("/aB/x"), Some(2));
        assert_eq!(first("/XA"), None, "the case of a regex is its own");
        assert_eq!(first("/xa"), Some(3));
        let long = format!("/aB/{}", "x".repeat(FOLD_ON_STACK));
        assert_eq!(first(&long), Some(2));
    }

    #[test]
    fn nothing_at_all() {
        assert_eq!(RouteIndex::default().find(b"/", |_| true), None);
    }
}
