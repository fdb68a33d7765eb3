//! What is rendered of the chart `cairn`: each example, and values that no example has.

use crate::world::{Rendered, World, example, examples};
use cairn_mesh_tests::admission::Platform::{self, Aks, Eci, Fargate, Plain};

/// Values, and what they ask for.
#[derive(Debug)]
pub struct Variant {
    pub name: &'static str,
    /// The example that they are, or start with.
    pub example: &'static str,
    /// `--set`.
    pub set: &'static [&'static str],
    /// Of the members that are always there.
    pub members: Platform,
    /// Of those that are scaled beside them.
    pub spot: Option<Platform>,
    /// `scaler.by`, or empty where there is no scaler.
    pub scaled_by: &'static str,
    pub registrar: bool,
    /// Ports of the clusters.
    pub ports: &'static [u16],
    /// Kinds, and how many there are of each.
    pub counts: &'static [(&'static str, usize)],
}

impl Variant {
    pub fn is_pool(&self) -> bool {
        self.example.starts_with("pool")
    }

    pub fn namespace(&self) -> String {
        if self.is_pool() { format!("chart-{}", self.name) } else { "istio-system".to_owned() }
    }

    /// Name of the release, and the beginning of all names.
    pub const RELEASE: &'static str = "edge-cairn";

    pub fn name_of(part: &str) -> String {
        format!("{}-{part}", Self::RELEASE)
    }
}

const POOL: Variant = Variant {
    name: "pool",
    example: "pool.yaml",
    set: &[],
    members: Plain,
    spot: None,
    scaled_by: "keda",
    registrar: true,
    ports: &[21001, 21002],
    counts: &[
        ("ConfigMap", 2),
        ("Deployment", 3),
        ("NetworkPolicy", 3),
        ("PodDisruptionBudget", 3),
        ("PodMonitor", 1),
        ("PrometheusRule", 1),
        ("Role", 2),
        ("RoleBinding", 2),
        ("ScaledObject", 1),
        ("Secret", 1),
        ("Service", 3),
        ("ServiceAccount", 3),
        ("ServiceMonitor", 1),
    ],
};

pub const VARIANTS: [Variant; 11] = [
    POOL,
    Variant {
        name: "eci",
        example: "pool-eci.yaml",
        members: Eci,
        spot: Some(Eci),
        scaled_by: "apply",
        ports: &[21001],
        counts: &[
            ("ConfigMap", 1),
            ("Deployment", 4),
            ("NetworkPolicy", 3),
            ("PodDisruptionBudget", 3),
            ("Role", 2),
            ("RoleBinding", 2),
            ("Secret", 1),
            ("Service", 3),
            ("ServiceAccount", 3),
        ],
        ..POOL
    },
    Variant {
        name: "aks",
        example: "pool-aks.yaml",
        members: Aks,
        ports: &[21001],
        counts: &[
            ("ConfigMap", 1),
            ("Deployment", 3),
            ("PodDisruptionBudget", 3),
            ("Role", 2),
            ("RoleBinding", 2),
            ("ScaledObject", 1),
            ("Secret", 1),
            ("Service", 3),
            ("ServiceAccount", 3),
        ],
        ..POOL
    },
    Variant {
        name: "fargate",
        example: "pool-fargate.yaml",
        members: Fargate,
        scaled_by: "hpa",
        ports: &[21001],
        counts: &[
            ("ConfigMap", 1),
            ("Deployment", 3),
            ("HorizontalPodAutoscaler", 1),
            ("NetworkPolicy", 3),
            ("PodDisruptionBudget", 3),
            ("Role", 2),
            ("RoleBinding", 2),
            ("Service", 3),
            ("ServiceAccount", 3),
        ],
        ..POOL
    },
    Variant {
        name: "swap",
        example: "swap.yaml",
        counts: &[("ConfigMap", 2), ("PodMonitor", 1), ("PrometheusRule", 1)],
        ..POOL
    },
    Variant {
        name: "swap-own-class",
        example: "swap-own-class.yaml",
        counts: &[("ConfigMap", 2), ("GatewayClass", 1)],
        ..POOL
    },
    Variant {
        name: "keda-beside-fixed",
        set: &[
            "members.replicas=4",
            "members.spot.enabled=true",
            "members.spot.platform=aks",
            "scaler.policy.min=6",
            "scaler.policy.max=50",
            "scaler.fallbackReplicas=10",
        ],
        spot: Some(Aks),
        counts: &[
            ("ConfigMap", 2),
            ("Deployment", 4),
            ("NetworkPolicy", 3),
            ("PodDisruptionBudget", 3),
            ("PodMonitor", 1),
            ("PrometheusRule", 1),
            ("Role", 2),
            ("RoleBinding", 2),
            ("ScaledObject", 1),
            ("Secret", 1),
            ("Service", 3),
            ("ServiceAccount", 3),
            ("ServiceMonitor", 1),
        ],
        ..POOL
    },
    Variant {
        name: "one-only",
        set: &[
            "scaler.enabled=false",
            "registrar.enabled=false",
            "pool.clusters=null",
            "monitoring.serviceMonitor=false",
        ],
        scaled_by: "",
        registrar: false,
        ports: &[],
        counts: &[
            ("ConfigMap", 2),
            ("Deployment", 1),
            ("NetworkPolicy", 1),
            ("PodDisruptionBudget", 1),
            ("PodMonitor", 1),
            ("PrometheusRule", 1),
            ("Secret", 1),
            ("Service", 1),
            ("ServiceAccount", 1),
        ],
        ..POOL
    },
    Variant {
        name: "nobody-scales",
        set: &["scaler.by=none", "rbac.create=false", "members.pdb.maxUnavailable=1"],
        scaled_by: "none",
        counts: &[
            ("ConfigMap", 2),
            ("Deployment", 3),
            ("NetworkPolicy", 3),
            ("PodDisruptionBudget", 3),
            ("PodMonitor", 1),
            ("PrometheusRule", 1),
            ("Secret", 1),
            ("Service", 3),
            ("ServiceAccount", 3),
            ("ServiceMonitor", 1),
        ],
        ..POOL
    },
    Variant {
        name: "all-of-a-pod",
        set: &[
            "image.pullSecrets={one,two}",
            "members.extraArgs={--capacity=in-flight=800,--max-in-flight=2000}",
            "members.env.CAIRN_RESOLVE=a=10.0.0.1",
            "members.priorityClassName=system-cluster-critical",
            "members.podLabels.team=mesh",
            "members.podLabels.app\\.kubernetes\\.io/component=other",
            "members.podAnnotations.note=yes",
            "members.podAnnotations.prometheus\\.io/path=/metrics",
            "members.nodeSelector.pool=a",
            "members.tolerations[0].operator=Exists",
            "scaler.extraArgs={--poll-interval=1s}",
            "scaler.nodeSelector.pool=b",
            "scaler.tolerations[0].operator=Exists",
            "registrar.extraArgs={--interval=1s}",
            "registrar.nodeSelector.pool=b",
            "registrar.tolerations[0].operator=Exists",
            "monitoring.labels.release=prometheus",
        ],
        ..POOL
    },
    Variant {
        name: "few-may-come",
        set: &["networkPolicy.hboneFrom[0].ipBlock.cidr=10.8.0.0/16", "pool.name=edge"],
        ..POOL
    },
];

/// Each of them, rendered.
pub async fn render(world: &World) -> Vec<(&'static Variant, Rendered)> {
    for name in examples("cairn") {
        let known = VARIANTS.iter().any(|one| one.example == name && one.set.is_empty());
        assert!(known, "what {name} gives is to be written down here");
    }
    let mut all = Vec::new();
    for variant in &VARIANTS {
        let file = example("cairn", variant.example);
        let mut args = vec!["--values", file.as_str()];
        for set in variant.set {
            args.extend(["--set", *set]);
        }
        let namespace = variant.namespace();
        all.push((variant, world.template("cairn", Variant::RELEASE, &namespace, &args).await));
    }
    all
}
