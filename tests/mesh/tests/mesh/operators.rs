//! What operators see: istiod's bookkeeping, and istioctl on our pages.

use crate::world::{POD, World};
use std::fs;

/// A command of `istioctl proxy-config`, the page that it reads, and what its output must name.
const COMMANDS: [(&str, &str, &str); 9] = [
    ("cluster", "/config_dump", "web.shop.svc.cluster.local"),
    ("listener", "/config_dump", "15008"),
    ("route", "/config_dump", "NAME"),
    ("secret", "/config_dump", "default"),
    ("bootstrap", "/config_dump", "waypoint"),
    ("ecds", "/config_dump", ""),
    ("all", "/config_dump", "main_internal"),
    ("eds", "/config_dump?include_eds=true", "connect_originate"),
    ("endpoint", "/clusters?format=json", "inbound-vip|80|http|web.shop.svc.cluster.local"),
];

pub async fn istioctl(world: &mut World) {
    for (command, page, named) in COMMANDS {
        let answer = world.waypoint.admin(page).await;
        assert_eq!(answer.status, 200, "{page}");
        let file = world.lab.dir.join(format!("{command}.json"));
        fs::write(&file, &answer.body).unwrap();
        let file = file.display().to_string();
        let args = ["proxy-config", command, "--file", &file];
        let (good, output, complaint) = world.lab.plane.istioctl(&args).await;
        assert!(good, "istioctl {}: {complaint}\n{output}", args.join(" "));
        assert!(output.contains(named), "istioctl {}: {output}", args.join(" "));
    }
}

pub async fn end(world: &mut World) {
    let page = world.lab.plane.debug("/debug/syncz").await;
    let proxies = page.as_array().cloned().unwrap_or_default();
    let ours: Vec<_> = proxies
        .iter()
        .filter(|proxy| proxy["proxy"].as_str().is_some_and(|id| id.contains(POD)))
        .collect();
    assert_eq!(ours.len(), 1, "{page}");
    for (kind, resource) in ours[0]["resources"].as_object().unwrap() {
        let error = resource.get("lastError").and_then(|error| error.as_str()).unwrap_or("");
        assert_eq!(error, "", "{kind} was refused: {resource}");
        assert_eq!(resource["sent"], resource["acked"], "{kind}: {resource}");
    }
    let metrics = world.lab.plane.metrics().await;
    let rejects: Vec<&str> = metrics
        .lines()
        .filter(|line| {
            line.starts_with("pilot_") && line.contains("reject") && !line.ends_with(" 0")
        })
        .collect();
    assert!(rejects.is_empty(), "{rejects:#?}");
    world.waypoint.terminate();
    assert!(world.waypoint.wait().await.success(), "SIGTERM is an orderly end");
}
