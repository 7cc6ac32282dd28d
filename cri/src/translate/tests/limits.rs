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
fn a_limit_on_the_sum_with_swap_needs_one_on_memory() {
    let mut f = fixture();
    f.resources().memory_swap_limit_in_bytes = 1 << 20;
    assert!(f.error().contains("memory_swap_limit_in_bytes: counts memory and swap"), "{}", f.error());
    f.host.swap_accounting = false;
    assert_eq!(resources(&f).memory(), &None, "nothing could be limited anyway");
}

#[test]
fn no_limit_of_cpu_is_minus_one() {
    let mut f = fixture();
    f.resources().cpu_quota = -1;
    assert_eq!(resources(&f).cpu().as_ref().unwrap().quota(), Some(-1));
}

#[test]
fn an_update_has_only_what_is_given() {
    let oci = |raw| Resources::parse("linux", raw).and_then(|parsed| parsed.to_oci(&HostFacts::default()));
    let raw = v1::LinuxContainerResources { cpu_shares: 204, oom_score_adj: 1000, ..Default::default() };
    let update = oci(raw).unwrap();
    assert_eq!(update.cpu().as_ref().unwrap().shares(), Some(204));
    assert_eq!((update.memory(), update.devices(), update.pids()), (&None, &None, &None));
    assert_eq!((update.unified(), update.hugepage_limits()), (&None, &None));
    let error = oci(v1::LinuxContainerResources { cpu_quota: -2, ..Default::default() }).unwrap_err();
    assert!(error.to_string().starts_with("linux.cpu_quota: -2 is no limit"), "{error}");
}

#[test]
fn overhead_comes_on_top_of_what_is_limited() {
    let parse = |raw| Resources::parse("x", raw).unwrap();
    let sum = parse(v1::LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let overhead = parse(v1::LinuxContainerResources {
        cpu_quota: 20_000,
        cpu_shares: 100,
        memory_limit_in_bytes: 16 << 20,
        ..Default::default()
    });
    let total = sum.plus(&overhead);
    // A fifth of a CPU is 10 ms of the sum's 50 ms.
    assert_eq!((total.cpu_period, total.cpu_quota), (Some(50_000), Some(35_000)));
    assert_eq!((total.cpu_shares, total.memory_limit), (Some(612), Some(80 << 20)));
    assert_eq!(total.memory_swap_limit, None);
    let unlimited = Resources::default().plus(&overhead);
    assert_eq!(unlimited, Resources::default(), "overhead limits nothing by itself");
    let open =
        parse(v1::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: -1, ..Default::default() });
    assert_eq!(open.plus(&overhead), open);
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
