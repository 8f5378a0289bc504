use super::*;

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"))
}

fn pod(phase: &str, vni: u32) -> PodStatus {
    serde_json::from_value(serde_json::json!({
        "sandbox": "s", "namespace": "n", "pod": "p", "phase": phase, "vm_name": "podvm-p-s",
        "addresses": [], "size_reason": "", "vni": vni, "socket": "", "created_ms": 0, "since_ms": 0,
        "timeline": []
    }))
    .expect("a pod")
}

#[test]
fn every_name_begins_with_kata_and_is_there_from_the_start() {
    let text = Metrics::new().render(&Now::default());
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.starts_with("kata_"), "{line}");
    }
    assert_eq!(line(&text, "kata_peerpodd_pods{phase=\"running\"}").rsplit(' ').next(), Some("0"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn pods_are_counted_by_phase_and_for_the_products_dashboards() {
    let pods = vec![pod("running", 5), pod("running", 6), pod("launching", 7), pod("deleting", 0)];
    let text = Metrics::new().render(&Now { pods, ..Now::default() });
    for (name, value) in [
        ("kata_peerpodd_pods{phase=\"running\"}", "2"),
        ("kata_peerpodd_deletes_pending", "1"),
        ("kata_peerpodd_vnis_in_use", "3"),
        ("kata_total_remote_pods", "3"),
        ("kata_failed_remote_pods", "1"),
    ] {
        assert_eq!(line(&text, name).rsplit(' ').next(), Some(value), "{name}");
    }
    assert!(line(&text, "kata_remote_workload_failure_ratio").contains("33.33"));
}

#[test]
fn what_happens_to_pods_is_counted() {
    let metrics = Metrics::new();
    metrics.phase(None, Some("prepared"));
    metrics.step("start", Duration::from_millis(250), true);
    metrics.step("start", Duration::from_secs(3), false);
    metrics.start_failed(Stage::Refused);
    metrics.pod_lost("vm");
    metrics.broken_records(2);
    metrics.sweep(Some(3), 1);
    metrics.sweep(None, 0);
    let text = metrics.render(&Now::default());
    for (name, value) in [
        ("kata_peerpodd_phase_changes_total{phase=\"prepared\"}", "1"),
        ("kata_peerpodd_starts_total{result=\"ok\"}", "1"),
        ("kata_peerpodd_starts_total{result=\"failed\"}", "1"),
        ("kata_peerpodd_start_failures_total{stage=\"refused\"}", "1"),
        ("kata_peerpodd_start_duration_seconds_count", "1"),
        ("kata_peerpodd_pods_lost_total{why=\"vm\"}", "1"),
        ("kata_peerpodd_records_unreadable", "2"),
        ("kata_peerpodd_sweeps_total{result=\"failed\"}", "1"),
        ("kata_peerpodd_sweep_found", "3"),
        ("kata_peerpodd_sweep_deleted_total", "1"),
    ] {
        assert_eq!(line(&text, name).rsplit(' ').next(), Some(value), "{name}");
    }
}
