use super::*;
use crate::config::{NodeOwner, PoolKind};
use crate::logic::gain::Gain;

const POOL: &str = "[[pool]]\nkind = \"emulated\"\ntaps = [\"vf0\"]\n";

fn load_text(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flexvf.toml");
    std::fs::write(&path, text).unwrap();
    let folder = format!("{}/", dir.path().display());
    Config::load(&path).map_err(|error| error.to_string().replace(&folder, ""))
}

#[test]
fn a_pool_alone_is_a_config_and_every_default_is_within_its_bounds() {
    let config = load_text(POOL).unwrap();
    let seconds = Duration::from_secs_f64;
    let recorder = config.recorder.clone().unwrap();
    assert!(recorder.folder.ends_with("state.recording") && recorder.max_bytes == 256_000_000);
    assert_eq!(config.strategy, Strategy::Fair);
    assert_eq!(config.tuning, Tuning::default());
    assert_eq!(config.interval, seconds(300.0));
    assert_eq!(config.sample_interval, seconds(10.0));
    assert_eq!(config.max_concurrent_switches, 4);
    let expected = Deadlines {
        prepare: seconds(5.0),
        plug: seconds(30.0),
        join: seconds(15.0),
        leave: seconds(5.0),
        drain: seconds(0.2),
        unplug: seconds(20.0),
        unplug_repeat: seconds(6.0),
        agent: seconds(2.0),
        qmp: seconds(5.0),
    };
    assert_eq!(config.deadlines, expected);
    let Some(PoolKind::Emulated(pool)) = config.pool("default").map(|pool| &pool.kind) else {
        panic!("{config:?}");
    };
    assert_eq!((pool.model.as_str(), &*pool.taps), ("e1000e", &["vf0".to_owned()][..]));
}

#[test]
fn every_key_is_taken() {
    let config = load_text(
        r#"
        strategy = "activity"
        interval_s = 10
        sample_interval_s = 0.5
        vms_dir = "/tmp/vms"
        state_file = "/tmp/state.json"
        control_socket = "/tmp/control"
        max_concurrent_switches = 63
        [policy]
        margin_percent = 20
        min_hold_s = 60
        switch_cost_s = 4
        max_wait_s = 120
        wants_pps = 100
        rate_time_constant_s = 600
        gain = "queue"
        pin_s_per_gib = 0.5
        [recorder]
        folder = "/tmp/recording"
        max_mb = 16
        [tenant.acme]
        weight = 3
        min_vfs = 1
        max_vfs = 4
        reserved_vfs = 2
        [tenant.lab-1]
        pool = "lab"
        [deadlines]
        prepare_s = 1
        plug_s = 600
        join_s = 60
        leave_s = 1
        drain_s = 0
        unplug_s = 60
        unplug_repeat_s = 12
        agent_s = 1
        qmp_s = 1
        [[pool]]
        name = "default"
        kind = "sriov"
        pf = ["eth0", "eth1"]
        vfs = ["0000:01:10.0-0000:01:10.2", "0000:02:10.0"]
        mac_order = "own-mac-follow"
        vlan = 7
        qos = 3
        spoof_check = false
        trust = true
        link_state = "auto"
        min_tx_rate_mbps = 10
        max_tx_rate_mbps = 1000
        required = ["vlan"]
        vfio = "iommufd"
        vfio_owner = "107:36"
        max_pf_filters = 24
        [[pool]]
        name = "rest"
        kind = "sriov"
        pf = "eth0"
        vfs = ["0000:01:10.4"]
        [[pool]]
        name = "lab"
        kind = "emulated"
        model = "igb"
        taps = ["vf0", "vf1"]
        "#,
    )
    .unwrap();
    assert_eq!(config.strategy, Strategy::Activity);
    let tuning = Tuning {
        margin_percent: 20,
        min_hold: Duration::from_secs(60),
        switch_cost: Duration::from_secs(4),
        max_wait: Duration::from_secs(120),
        wants_pps: 100,
        rate_time_constant: Duration::from_secs(600),
        gain: Gain::Queue,
        pin_per_gib: Duration::from_millis(500),
    };
    assert_eq!(config.tuning, tuning);
    let acme = config.tenants.get(&"acme".parse().unwrap()).unwrap();
    assert_eq!((acme.weight, acme.min_vfs, acme.max_vfs, acme.reserved_vfs), (3, 1, Some(4), 2));
    assert_eq!((acme.pool.as_str(), config.tenants.all()[1].pool.as_str()), ("default", "lab"));
    let recorder = config.recorder.unwrap();
    assert_eq!(
        (recorder.folder, recorder.max_bytes),
        (PathBuf::from("/tmp/recording"), 16_000_000)
    );
    assert_eq!(config.deadlines.drain, Duration::ZERO);
    let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["default", "rest", "lab"]);
    let PoolKind::Sriov(pool) = &config.pools[0].kind else {
        panic!("{:?}", config.pools[0]);
    };
    assert_eq!((pool.pfs.len(), pool.vfio_owner), (2, NodeOwner::Ids(107, 36)));
    let in_pool = |vf: &str| {
        let vf = vf.parse().unwrap();
        pool.vfs.iter().flatten().any(|range| range.contains(vf))
    };
    assert!(in_pool("0000:01:10.0") && in_pool("0000:01:10.1") && in_pool("0000:02:10.0"));
    assert!(!in_pool("0000:01:10.3") && !in_pool("0000:02:10.1"));
    assert_eq!((pool.settings.vlan, pool.settings.spoof_check), (Some(7), Some(false)));
    assert_eq!((pool.settings.wishes().len(), pool.max_pf_filters), (5, Some(24)));
}

#[test]
fn each_error_is_one_line_with_file_line_and_remedy() {
    let second = |pool: &str| format!("{POOL}[[pool]]\n{pool}");
    for (text, error) in [
        (
            String::new(),
            "flexvf.toml: no pool to take VFs from; add a [[pool]] with kind = \"sriov\" and pf, or kind = \"emulated\" and taps",
        ),
        (
            format!("interval_s = 5\n{POOL}"),
            "flexvf.toml:1: samples 10s apart, decisions 5s; sample at least once in each interval",
        ),
        (
            format!("sample_interval_s = -1\n{POOL}"),
            "flexvf.toml:1: -1 seconds; give 0.1 to 2592000 seconds",
        ),
        (
            format!("[deadlines]\nunplug_repeat_s = 3\n{POOL}"),
            "flexvf.toml:2: 3 seconds; give 5.1 to 3600 seconds",
        ),
        (
            format!("[policy]\nmax_wait_s = 299\n{POOL}"),
            "flexvf.toml:2: a wait of 299s, decisions 300s apart; give at least interval_s",
        ),
        (
            format!("[policy]\nmargin_percent = 1001\n{POOL}"),
            "flexvf.toml:2: a margin of 1001 %; give 0 to 1000",
        ),
        (
            format!("[tenant.acme]\nreserved_vfs = 2\n{POOL}"),
            "flexvf.toml:2: min_vfs and reserved_vfs of the tenants of pool \"default\" come to 2 VFs with this one, and it has 1; lower them, or give the pool more VFs",
        ),
        (
            format!("[tenant.acme]\nmin_vfs = 1\nmax_vfs = 0\n{POOL}"),
            "flexvf.toml:3: max_vfs 0 below the 1 of min_vfs and reserved_vfs; give at least as many, or lower those",
        ),
        (
            format!("[tenant.acme]\npool = \"b\"\n{POOL}"),
            "flexvf.toml:2: tenant acme: no pool is named \"b\"; set `pool` to the one that its VMs are of: default",
        ),
        (
            format!("[tenant.\"a b\"]\n{POOL}"),
            "flexvf.toml:1: \"a b\" is not a tenant's name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        ),
        (format!("[tenant.acme]\nweight = 0\n{POOL}"), "flexvf.toml:2: weight 0; give 1 to 1000"),
        (
            format!("max_concurrent_switches = 0\n{POOL}"),
            "flexvf.toml:1: 0 concurrent switches; give 1 to 1024",
        ),
        (
            second("kind = \"emulated\"\ntaps = [\"vf9\"]\n"),
            "flexvf.toml:4: a second pool named \"default\"; give each pool a name of its own",
        ),
        (
            second("name = \"b\"\nkind = \"emulated\"\ntaps = [\"vf0\"]\n"),
            "flexvf.toml:7: TAP vf0 is listed already, in pool \"default\"; list it once",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\n"),
            "flexvf.toml:6: a pool of VFs without their PF; add pf = \"INTERFACE\", the PF's as `ip link` shows it",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\ntaps = [\"vf1\"]\n"),
            "flexvf.toml:8: `taps` belongs to pools of kind \"emulated\"; remove it, or correct the pool's kind",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\ntrust = false\n"),
            "flexvf.toml:8: mac_order \"own-mac-follow\" without trust; leave it out: the guest's bond moves the shared MAC address to the VF",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\nvfs = [\"01:10.0\"]\n"),
            "flexvf.toml:8: \"01:10.0\" is not a PCI address; write domain:bus:device.function such as 0000:01:10.0",
        ),
        (
            second(
                "name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\nvfs = [\"0000:01:10.2-0000:01:10.0\"]\n",
            ),
            "flexvf.toml:8: 0000:01:10.2-0000:01:10.0 is a range that ends before it begins; write FIRST-LAST",
        ),
        (
            second(
                "name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\nvfs = [\"0000:01:10.0-0000:01:10.2\", \"0000:01:10.1\"]\n",
            ),
            "flexvf.toml:8: VF 0000:01:10.1 is listed already, in pool \"b\"; list it once",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = []\n"),
            "flexvf.toml:6: a pool of VFs without their PF; add pf = \"INTERFACE\", the PF's as `ip link` shows it",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\nvfio_owner = \"kvm\"\n"),
            "flexvf.toml:8: \"kvm\" is no owner of a node; give \"qemu\", \"keep\", or \"UID:GID\" in numbers",
        ),
        (
            second("name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\nvlan = 4095\n"),
            "flexvf.toml:8: VLAN 4095; give 1 to 4094, or 0 for none",
        ),
        (
            second(
                "name = \"b\"\nkind = \"sriov\"\npf = \"eth0\"\n[[pool]]\nname = \"c\"\nkind = \"sriov\"\npf = \"eth0\"\n",
            ),
            "flexvf.toml:11: pool \"b\" takes VFs of eth0 too; list the `vfs` of each of the two",
        ),
        (
            second("name = \"b\"\nkind = \"emulated\"\ntaps = []\n"),
            "flexvf.toml:6: an emulated pool without TAPs; add taps = [\"vf0\", …], existing TAPs on the guests' bridge",
        ),
        (
            format!("vms_dir = \"vms\"\n{POOL}"),
            "flexvf.toml:1: \"vms\" is a relative path; give it in full, from / on",
        ),
    ] {
        assert_eq!(load_text(&text).unwrap_err(), error);
    }
}

#[test]
fn an_unknown_key_is_refused_by_its_line_in_every_table() {
    for (text, line) in [
        (format!("\nintervall_s = 5\n{POOL}"), 2),
        (format!("[deadlines]\nplug = 5\n{POOL}"), 2),
        (format!("[policy]\nmargin = 5\n{POOL}"), 2),
        (format!("[tenant.a]\nmin = 1\n{POOL}"), 2),
        (format!("{POOL}tap = \"vf1\"\n"), 4),
    ] {
        let error = load_text(&text).unwrap_err();
        assert!(error.starts_with(&format!("flexvf.toml:{line}: unknown field")), "{error}");
    }
}

#[test]
fn the_example_in_the_documentation_is_in_order() {
    let config = load_text(include_str!("../../../docs/flexvf.toml")).unwrap();
    let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["default", "tenants"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/no/such/flexvf.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/flexvf.toml: "), "{error}");
}

#[test]
fn a_recorder_of_no_size_is_none_and_a_relative_folder_is_refused() {
    assert_eq!(load_text(&format!("[recorder]\nmax_mb = 0\n{POOL}")).unwrap().recorder, None);
    let error = load_text(&format!("[recorder]\nmax_mb = 2000000\n{POOL}")).unwrap_err();
    assert!(
        error.ends_with(":2: 2000000 MB for recordings; give 1 to 1000000, or 0 for none"),
        "{error}"
    );
    let error = load_text(&format!("[recorder]\nfolder = \"here\"\n{POOL}")).unwrap_err();
    assert!(error.contains("relative path"), "{error}");
}

#[test]
fn a_gain_is_named_or_read_from_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let curve = dir.path().join("gain.toml");
    let point = "[[point]]\npps = 10.0\nbytes = 64\npv_us = 3.0\nvf_us = 1.0\npv_lost = 0.0\nvf_lost = 0.0\n";
    std::fs::write(&curve, format!("vm = \"a\"\nvf = \"vf0\"\n{point}")).unwrap();
    let of = |policy: &str| load_text(&format!("[policy]\n{policy}\n{POOL}"));
    let Gain::Measured(curve_read) = of(&format!("gain_file = {curve:?}")).unwrap().tuning.gain
    else {
        panic!("not measured");
    };
    assert_eq!(curve_read.points(), [(10, 20_000)]);
    let both = of(&format!("gain = \"queue\"\ngain_file = {curve:?}")).unwrap_err();
    assert_eq!(both, "flexvf.toml:2: gain and gain_file; give one of the two");
    let relative = of("gain_file = \"gain.toml\"").unwrap_err();
    assert!(relative.contains("give it in full, from / on"), "{relative}");
    let absent = of("gain_file = \"/nowhere/gain.toml\"").unwrap_err();
    assert!(absent.starts_with("/nowhere/gain.toml: No such file"), "{absent}");
    assert!(of("gain = \"boost\"").unwrap_err().contains("unknown variant `boost`"));
}
