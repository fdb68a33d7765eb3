//! The indexed lookup gives what a scan of the list gives, on random tables and requests.

use super::*;
use regex::Regex;

/// A small generator (xorshift64*), so that failures can be repeated by their seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }
}

struct Probe {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

/// The list as Envoy would scan it, written without the code under test.
struct Scan(Vec<(spec::RouteMatch, Option<Regex>)>);

impl Scan {
    fn new(routes: &[spec::Route]) -> Scan {
        let with_regex = |route: &spec::Route| {
            let regex = match &route.matches.path {
                PathMatch::Regex(pattern) => Some(Regex::new(&format!("^(?:{pattern})$")).unwrap()),
                _ => None,
            };
            (route.matches.clone(), regex)
        };
        Scan(routes.iter().map(with_regex).collect())
    }

    fn find(&self, probe: &Probe) -> Option<usize> {
        let lower = probe.path.to_ascii_lowercase();
        self.0.iter().position(|(route, regex)| {
            let fold = |text: &String| match route.case_sensitive {
                true => text.clone(),
                false => text.to_ascii_lowercase(),
            };
            let path = if route.case_sensitive { &probe.path } else { &lower };
            let path_fits = match &route.path {
                PathMatch::Exact(text) => *path == fold(text),
                PathMatch::Prefix(text) => path.starts_with(&fold(text)),
                PathMatch::PathSeparatedPrefix(text) => {
                    let rest = path.strip_prefix(&fold(text));
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                }
                PathMatch::Regex(_) => regex.as_ref().unwrap().is_match(&probe.path),
            };
            path_fits
                && route.headers.iter().all(|header| probe.has_header(header))
                && route.query.iter().all(|parameter| probe.has_parameter(parameter))
        })
    }
}

impl Probe {
    fn has_header(&self, header: &spec::HeaderMatch) -> bool {
        let value = match header.name.as_str() {
            ":method" => Some(self.method.as_str()),
            name => self.headers.get(name).map(|value| value.to_str().unwrap()),
        };
        match (&header.value, value) {
            (ValueMatch::Exact(text), Some(value)) => (value == text) != header.invert,
            (ValueMatch::Present(true), value) => value.is_some() != header.invert,
            (_, None) => false,
            (other, _) => panic!("{other:?} is not generated"),
        }
    }

    fn has_parameter(&self, parameter: &spec::QueryMatch) -> bool {
        let ValueMatch::Exact(text) = &parameter.value else { panic!("only exact") };
        self.query.as_deref() == Some(&format!("{}={text}", parameter.name))
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            authority: "app",
            path: &self.path,
            query: self.query.as_deref(),
            scheme: "http",
            headers: &self.headers,
        }
    }
}

struct Shape {
    segments: Vec<String>,
    /// Percent of all routes.
    regexes: usize,
    predicates: usize,
    folded: usize,
}

impl Shape {
    fn small() -> Shape {
        let segments = ["a", "A", "b", "ab", "aB", "abc", "1", "42", ""];
        let segments = segments.iter().map(|segment| (*segment).to_owned()).collect();
        Shape { segments, regexes: 15, predicates: 25, folded: 15 }
    }

    fn large() -> Shape {
        let segments = (0..40).map(|number| format!("s{number}")).collect();
        Shape { segments, regexes: 2, predicates: 20, folded: 5 }
    }

    fn path(&self, random: &mut Random) -> String {
        let mut path = String::new();
        for _ in 0..=random.below(4) {
            path.push('/');
            path.push_str(&self.segments[random.below(self.segments.len())]);
        }
        if random.percent(15) {
            path.push('/');
        }
        path
    }

    fn route(&self, name: usize, random: &mut Random) -> spec::Route {
        let path = self.path(random);
        let matched = if random.percent(self.regexes) {
            PathMatch::Regex(match random.below(6) {
                0 => format!("{path}/[a-z0-9]+"),
                1 => format!(".*{path}"),
                2 => format!("{path}(/.*)?"),
                3 => format!("(?i){path}"),
                4 => format!("(/a|/b|{path})[^/]*"),
                _ => format!("{path}|/a|/s1"),
            })
        } else {
            match random.below(3) {
                0 => PathMatch::Exact(path),
                1 => PathMatch::Prefix(path[..1 + random.below(path.len())].to_owned()),
                _ => match path.trim_end_matches('/') {
                    "" => PathMatch::Prefix("/".to_owned()),
                    path => PathMatch::PathSeparatedPrefix(path.to_owned()),
                },
            }
        };
        let mut route = route(&name.to_string(), matched);
        route.matches.case_sensitive = !random.percent(self.folded);
        if random.percent(self.predicates) {
            let value = match random.below(3) {
                0 => ValueMatch::Present(true),
                _ => ValueMatch::Exact(random.of(&["1", "2"]).to_owned()),
            };
            let mut header = header("x-a", value);
            header.invert = random.percent(20);
            route.matches.headers.push(header);
        }
        if random.percent(self.predicates) {
            let method = ValueMatch::Exact(random.of(&["GET", "POST"]).to_owned());
            route.matches.headers.push(header(":method", method));
        }
        if random.percent(self.predicates / 2) {
            let value = ValueMatch::Exact(random.of(&["1", "2"]).to_owned());
            route.matches.query.push(spec::QueryMatch { name: "q".into(), value });
        }
        route
    }

    fn probe(&self, random: &mut Random) -> Probe {
        let mut headers = HeaderMap::new();
        if random.percent(50) {
            headers.insert("x-a", random.of(&["1", "2", "3"]).parse().unwrap());
        }
        let query = random.percent(50).then(|| format!("q={}", random.of(&["1", "2"])));
        let mut path = self.path(random);
        if random.percent(10) {
            path = path.to_ascii_uppercase();
        }
        let method = if random.percent(50) { Method::GET } else { Method::POST };
        Probe { method, path, query, headers }
    }

    fn check(&self, seed: u64, routes: usize, probes: usize) -> usize {
        let random = &mut Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let routes: Vec<spec::Route> = (0..routes).map(|name| self.route(name, random)).collect();
        let scan = Scan::new(&routes);
        let table = compile(vec![host("v", &["*"], routes.clone())]);
        let mut found = 0;
        for _ in 0..probes {
            let probe = self.probe(random);
            let expected = scan.find(&probe);
            let matched = table.find(&probe.view());
            let indexed = matched.map(|matched| matched.route.name.parse::<usize>().unwrap());
            assert_eq!(
                indexed,
                expected,
                "seed {seed}: {} {:?} {:?} {:?}: {:?} or {:?}",
                probe.method,
                probe.path,
                probe.query,
                probe.headers,
                indexed.map(|at| &routes[at].matches),
                expected.map(|at| &routes[at].matches),
            );
            found += usize::from(expected.is_some());
        }
        found
    }
}

#[test]
fn ten_thousand_routes() {
    let found = Shape::large().check(1, 10_000, 1500);
    assert!(found > 1000, "{found} of 1500 found a route");
}

#[test]
fn many_small_tables() {
    let shape = Shape::small();
    let found: usize = (0..1000).map(|seed| shape.check(seed, 1 + seed as usize % 40, 40)).sum();
    assert!(found > 20_000, "{found} of 40000 found a route");
}

#[test]
fn few_of_ten_thousand_are_looked_at() {
    let mut routes: Vec<spec::Route> = (0..10_000)
        .map(|number| {
            let path = format!("/service{}/resource{}", number % 100, number / 100);
            route(
                &number.to_string(),
                match number % 3 {
                    0 => PathMatch::Exact(path),
                    1 => PathMatch::PathSeparatedPrefix(path),
                    _ => PathMatch::Regex(format!("{path}/[0-9]+")),
                },
            )
        })
        .collect();
    routes.push(route("rest", PathMatch::Prefix("/".into())));
    let table = compile(vec![host("v", &["*"], routes)]);
    let [host] = table.virtual_hosts() else { panic!("one virtual host") };
    for (path, expected) in [
        ("/service99/resource99", Some(9999)),
        ("/service98/resource99/17", Some(9998)),
        ("/service97/resource99/x/y", Some(9997)),
        ("/nothing", Some(10_000)),
        ("*", None),
    ] {
        let mut looked_at = 0;
        let found = host.index.find(path.as_bytes(), |_| {
            looked_at += 1;
            true
        });
        assert_eq!(found, expected, "{path}");
        assert!(looked_at <= 3, "{looked_at} for {path}");
    }
}
