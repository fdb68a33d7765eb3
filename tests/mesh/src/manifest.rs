//! YAML with several documents, as charts render it, cut into objects for the API server.
//!
//! The server reads YAML itself; all that has to be known here is where an object goes.

/// One object as text, and what names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// `ConfigMap`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or empty.
    pub namespace: String,
    /// All of it.
    pub text: String,
}

/// The documents of a stream. Those without a kind (comments, empty ones) are left out.
pub fn documents(stream: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut text = String::new();
    for line in stream.lines().chain(["---"]) {
        if line == "---" || line.starts_with("--- ") {
            documents.extend(document(std::mem::take(&mut text)));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    documents
}

/// Block style with fields of the top level at the margin and those of `metadata` below it: what every
/// printer of YAML writes.
fn document(text: String) -> Option<Document> {
    let mut fields = [const { String::new() }; 4];
    let mut metadata = None;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let indent = line.len() - line.trim_start().len();
        let Some((key, value)) = line.trim().split_once(':') else { continue };
        let value = value.trim().trim_matches(['"', '\'']);
        let place = match (indent, key) {
            (0, "metadata") => {
                metadata = Some(0);
                continue;
            }
            (0, other) => {
                metadata = None;
                match other {
                    "apiVersion" => 0,
                    "kind" => 1,
                    _ => continue,
                }
            }
            (depth, key) => match (&mut metadata, key) {
                (None, _) => continue,
                (Some(first), key) => {
                    if *first == 0 {
                        *first = depth;
                    }
                    match key {
                        "name" if *first == depth => 2,
                        "namespace" if *first == depth => 3,
                        _ => continue,
                    }
                }
            },
        };
        if let Some(field) = fields.get_mut(place) {
            value.clone_into(field);
        }
    }
    let [api_version, kind, name, namespace] = fields;
    (!kind.is_empty()).then_some(Document { api_version, kind, name, namespace, text })
}

/// The path of an object, or of all of its kind where `name` is empty.
pub fn path(api_version: &str, kind: &str, namespace: &str, name: &str) -> String {
    let api = if api_version.contains('/') { "apis" } else { "api" };
    let mut path = format!("/{api}/{api_version}");
    if !namespace.is_empty() {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    path.push('/');
    path.push_str(&plural(kind));
    if !name.is_empty() {
        path.push('/');
        path.push_str(name);
    }
    path
}

/// The resource of a kind: English plural in lower case, as every kind used here has it.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn documents_are_named_by_their_own_metadata() {
        let text = "# comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  labels:\n    name: no\n  \
                    name: \"istio\"\n  namespace: istio-system\ndata:\n  name: other\n---\n\n---\n\
                    kind: ClusterRole\napiVersion: rbac.authorization.k8s.io/v1\nmetadata:\n    name: r\nrules: []\n";
        let found = documents(text);
        let names: Vec<_> = found
            .iter()
            .map(|d| (d.kind.as_str(), d.name.as_str(), d.namespace.as_str()))
            .collect();
        assert_eq!(names, [("ConfigMap", "istio", "istio-system"), ("ClusterRole", "r", "")]);
    }

    #[test]
    fn paths_are_those_of_the_api_server() {
        assert_eq!(path("v1", "Pod", "shop", "a"), "/api/v1/namespaces/shop/pods/a");
        assert_eq!(
            path("gateway.networking.k8s.io/v1", "Gateway", "shop", ""),
            "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways"
        );
        assert_eq!(
            path("security.istio.io/v1", "AuthorizationPolicy", "s", "p"),
            "/apis/security.istio.io/v1/namespaces/s/authorizationpolicies/p"
        );
        assert_eq!(plural("IngressClass"), "ingressclasses");
    }
}
