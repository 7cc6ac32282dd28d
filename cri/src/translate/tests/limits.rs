//! Resources.

use oci_spec::runtime::LinuxResources;

use super::*;

fn resources(f: &Fixture) -> LinuxResources {
    f.linux().resources().clone().unwrap()
}

#[test]
fn every_limit_reaches_the_spec() {
    let mut f = fixture();
    f.host.hugepage_sizes.insert("2MB".into());
    f.defaults.pids_limit = Some(4096);
    *f.resources() = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -997,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![
            v1::HugepageLimit { page_size: "1GB".into(), limit: 0 },
            v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 },
        ],
        unified: [("memory.high".to_owned(), "1000000".to_owned())].into(),
        memory_swap_limit_in_bytes: 96 << 20,
    };
    let resources = resources(&f);
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.period(), cpu.quota(), cpu.shares()), (Some(100_000), Some(50_000), Some(512)));
    assert_eq!((cpu.cpus().as_deref(), cpu.mems().as_deref()), (Some("0-1"), Some("0")));
    let memory = resources.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(96 << 20)));
    assert_eq!(resources.pids().unwrap().limit(), 4096);
    let [huge] = resources.hugepage_limits().as_deref().unwrap() else { panic!("one") };
    assert_eq!((huge.page_size().as_str(), huge.limit()), ("2MB", 4 << 20));
    assert_eq!(resources.unified().as_ref().unwrap()["memory.high"], "1000000");
    assert_eq!(f.process().oom_score_adj(), Some(-997));

    let parsed = f.parse().unwrap().1.resources;
    assert_eq!(v1::LinuxContainerResources::from(&parsed), *f.resources());
}

#[test]
fn no_swap_is_the_default_where_swap_can_be_limited() {
    let mut f = fixture();
    let memory = |f: &Fixture| resources(f).memory().map(|memory| (memory.limit(), memory.swap()));
    f.resources().memory_limit_in_bytes = 1 << 20;
    assert_eq!(memory(&f), Some((Some(1 << 20), Some(1 << 20))));
    f.resources().memory_swap_limit_in_bytes = -1;
    assert_eq!(memory(&f), Some((Some(1 << 20), Some(-1))));
    f.host.swap_accounting = false;
    assert_eq!(memory(&f), Some((Some(1 << 20), None)));
    f.resources().memory_limit_in_bytes = -1;
    f.resources().memory_swap_limit_in_bytes = 0;
    assert_eq!(memory(&f), Some((Some(-1), None)));
}

#[test]
fn no_limit_of_cpu_is_minus_one() {
    let mut f = fixture();
    f.resources().cpu_quota = -1;
    assert_eq!(resources(&f).cpu().as_ref().unwrap().quota(), Some(-1));
}

#[test]
fn an_update_has_only_what_is_given() {
    let raw = v1::LinuxContainerResources { cpu_shares: 204, oom_score_adj: 1000, ..Default::default() };
    let update = super::super::resources(raw.clone(), &HostFacts::default()).unwrap();
    assert_eq!(update.cpu().as_ref().unwrap().shares(), Some(204));
    assert_eq!((update.memory(), update.devices(), update.pids()), (&None, &None, &None));
    assert_eq!((update.unified(), update.hugepage_limits()), (&None, &None));
    let raw_bad = v1::LinuxContainerResources { cpu_quota: -2, ..Default::default() };
    let error = super::super::resources(raw_bad, &HostFacts::default()).unwrap_err();
    assert!(error.to_string().starts_with("linux.cpu_quota: -2 is no limit"), "{error}");

    let first = v1::LinuxContainerResources {
        cpu_shares: 2,
        memory_limit_in_bytes: 1 << 20,
        oom_score_adj: 5,
        ..Default::default()
    };
    let merged = Resources::parse("a", first).unwrap().updated(Resources::parse("b", raw).unwrap());
    let reported = v1::LinuxContainerResources::from(&merged);
    assert_eq!(
        (reported.cpu_shares, reported.memory_limit_in_bytes, reported.oom_score_adj),
        (204, 1 << 20, 5)
    );
}

#[test]
fn what_this_node_cannot_limit_is_refused() {
    let mut f = fixture();
    f.resources().hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 1 << 21 }];
    assert!(f.error().contains("no hugetlb cgroup for pages of 2MB"), "{}", f.error());
    f.resources().hugepage_limits[0].limit = 0;
    assert_eq!(resources(&f).hugepage_limits(), &None);
    f.host.cgroup = CgroupVersion::V1;
    f.resources().unified.insert("memory.high".into(), "1".into());
    assert!(f.error().starts_with("config.linux.resources.unified: names cgroup v2"), "{}", f.error());
}

#[test]
fn a_pods_own_resources_are_checked_too() {
    let mut f = fixture();
    f.pod_linux().resources = Some(v1::LinuxContainerResources { cpu_shares: 100, ..Default::default() });
    f.pod_linux().overhead = Some(v1::LinuxContainerResources { cpu_shares: 1, ..Default::default() });
    let error = f.parse_pod().unwrap_err().to_string();
    assert!(error.starts_with("config.linux.overhead.cpu_shares: 1 is outside"), "{error}");
    f.pod_linux().overhead = None;
    assert_eq!(f.parse_pod().unwrap().resources.unwrap().cpu_shares, Some(100));
}
