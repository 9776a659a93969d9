//! The report: what was played, on which grounds, and how it came out.

use std::fmt::Write;

use anyhow::Result;
use serde_json::json;

use super::compare::{Compared, Row};
use super::ftp::{FTP_PPS, Ftp, FtpRun};
use super::groups::{Groups, Total};
use super::model::{LINK_PPS, PV_CORE_PPS};
use super::switches::Switches;
use super::{VFS, svg};

/// Everything that is told.
#[derive(Debug)]
pub struct Report {
    /// What was random follows from it.
    pub seed: u64,
    /// Figure 7.
    pub groups: Groups,
    /// Figure 8.
    pub ftp: Ftp,
    /// Policies on shapes of traffic.
    pub shapes: Vec<Compared>,
    /// What switches took, if there is a measurement.
    pub measured: Vec<Switches>,
}

impl Report {
    /// All figures as numbers, and what each rests on.
    ///
    /// # Errors
    /// A number without a JSON form.
    pub fn summary(&self) -> Result<String> {
        let Self { seed, groups, ftp, shapes, measured } = self;
        let grounds = json!({
            "policies": "the product's own code",
            "rates": "made up",
            "latency": "modelled: M/M/1",
            "pv_core_pps": {"value": PV_CORE_PPS, "source": "scripts/bench pv, vhost-net-pv/README.md"},
            "link_pps": {"value": LINK_PPS, "source": "IEEE 802.3, 10 GbE, 64-byte frames"},
            "switches": "measured on the testbed, emulated hardware",
            "measured_on_hardware": [],
        });
        let summary = json!({
            "seed": seed, "vfs": VFS, "grounds": grounds,
            "figure7": groups, "figure8": ftp, "policies": shapes, "switches": measured,
        });
        Ok(serde_json::to_string_pretty(&summary)?)
    }

    /// For people.
    pub fn html(&self) -> String {
        let Self { seed, groups, ftp, shapes, measured } = self;
        let mut totals = String::new();
        for Total { contender, carried, mean_us } in &groups.totals {
            let _ = writeln!(
                totals,
                "<tr><td>{contender}<td>{:.1} %<td>{mean_us:.2} µs",
                100.0 * carried
            );
        }
        let mut runs = String::new();
        for FtpRun { contender, carried, first_vf_s, .. } in &ftp.runs {
            let first = first_vf_s.map_or("never".to_owned(), |seconds| format!("{seconds} s"));
            let _ = writeln!(runs, "<tr><td>{contender}<td>{first}<td>{:.0} %", 100.0 * carried);
        }
        let mut rows = String::new();
        for Compared { shape, policies } in shapes {
            for Row { policy, outcome } in policies {
                let gain = 100.0 * outcome.gain;
                let (switches, wait, jain) =
                    (outcome.switches, outcome.longest_wait_s, outcome.jain);
                let _ = writeln!(
                    rows,
                    "<tr><td>{shape}<td>{policy}<td>{gain:.1} %<td>{switches}<td>{wait} s<td>{jain:.3}"
                );
            }
        }
        let switches = switches_html(measured);
        let (what, cores) = (Groups::what(), groups.pv_cores);
        let (latency, transfer, gain) =
            (svg::latency(groups), svg::transfer(ftp), svg::gain(shapes));
        let (pv_mpps, link_mpps, ftp_kpps) = (PV_CORE_PPS / 1e6, LINK_PPS / 1e6, FTP_PPS / 1e3);
        format!(
            r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>FlexVF: the paper's evaluation, by simulation</title>
<style>{STYLE}</style>
<h1>FlexVF: the paper's evaluation, by simulation</h1>
<p>Who gets a VF is decided by FlexVF's own policies, asked round by round. Traffic is made up. Latency is <b>modelled</b>. Nothing
in this report is measured on real hardware; seed {seed}.</p>
<h2>Figure 7: latency by group <span class="tag">modelled</span></h2>
<p>{what}, as in section 6.4. Boxes show the quartiles and the median of a packet's time on its path, whiskers the 5th and
95th percentile; below them, how much of the time the group's VMs were on a VF, in percent.</p>
{latency}
<table><tr><th>policy<th>packets over VFs<th>time of a packet, mean
{totals}</table>
<p><b>Model.</b> Each path is a queue (M/M/1). PV: {pv_mpps} Mpps a core, which is what <code>scripts/bench pv</code> measured of
vhost-net-pv (64-byte frames from a guest through a TAP); all VMs on PV share {cores} cores, the fewest that carry everybody.
VF: {link_mpps:.2} Mpps, a 10 GbE link at 64-byte frames. What both paths have in common is left out, so these are no
round-trip times, and their ratios are larger than an application's.</p>
<p><b>Beside the paper.</b> The order that the paper's argument leads to comes out: activity before fair and random, and PV only
last; activity leaves the groups with the lowest rates on PV, while fair gives every group the same part of the time. Its
latencies are another machine's and other packets', and are not compared with these. That VMs on PV gain, too, when the busiest
leave it, is the model's assumption of shared cores.</p>
<h2>Figure 8: a file transfer among 100 VMs <span class="tag">simulated</span></h2>
<p>The VM moves a file at {ftp_kpps:.0} kpps (10 GbE, full frames), to or from it: rates count both directions alike. Coloured: it
has a VF, faint before and after the transfer.</p>
{transfer}
<table><tr><th>policy<th>first VF after<th>of the file over a VF
{runs}</table>
<p><b>Beside the paper.</b> The paper shows the transfer's throughput; that is the hardware's, and not modelled here. What the policy
decides is shown instead. Activity notices the transfer at its first decision, and keeps it on a VF to its end and one round longer.</p>
<h2>Policies on shapes of traffic <span class="tag">simulated</span></h2>
<p>100 VMs, {VFS} VFs, a day, a sample a second: <code>flexvf simulate</code>. Gain is the packets that VFs carried, as a part of
what an assignment would have had them carry that knows each interval beforehand and switches at no cost.</p>
{gain}
<table><tr><th>traffic<th>policy<th>gain<th>switches<th>longest wait<th>Jain's index
{rows}</table>
{switches}<p>Data: the CSV files beside this one, and summary.json.</p>
"#
        )
    }
}

/// Nothing without a measurement.
fn switches_html(measured: &[Switches]) -> String {
    if measured.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for Switches { direction, pool, count, total_ms: [least, middle, most], .. } in measured {
        let _ = writeln!(
            rows,
            "<tr><td>{pool}<td>{direction}<td>{count}<td>{middle:.0} ms<td>{least:.0} to {most:.0} ms"
        );
    }
    format!(
        r#"<h2>Section 6.2: what a switch takes <span class="tag">measured on emulated hardware</span></h2>
<p>From <code>scripts/demo --json</code>, which ran real QEMUs and guests on the project's testbed: emulated NICs, and where
there is no KVM emulated processors. Bars: each step's median.</p>
{}
<table><tr><th>pool<th>direction<th>switches<th>median<th>range
{rows}</table>
<p><b>Beside the paper.</b> The paper's times are a real NIC's and real processors', and are not compared with these.</p>
"#,
        svg::switches(measured)
    )
}

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1c1c;--grid:#d5d5d5;--c0:#7a7a7a;--c1:#d98200;--c2:#0072b2;--c3:#008a63}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e8e8;--grid:#3d4146;--c0:#a0a0a0;--c1:#f0a830;--c2:#56b4e9;--c3:#2fc79a}}
body{background:var(--paper);color:var(--ink);font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}
svg{width:100%;height:auto;display:block}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}
td,th{padding:.15rem .7rem;text-align:left;border-bottom:1px solid var(--grid)}
.tag{font-size:.6em;border:1px solid;border-radius:.3em;padding:.1em .4em;vertical-align:middle}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{ftp, groups};

    #[test]
    fn a_report_has_its_plots_its_figures_and_its_grounds() {
        let (groups, ftp) = (groups::play(1), ftp::play(1));
        let report = Report { seed: 1, groups, ftp, shapes: Vec::new(), measured: Vec::new() };
        let html = report.html();
        assert_eq!(html.matches("<svg ").count(), 3);
        assert_eq!(html.matches("</svg>").count(), 3);
        assert!(
            html.contains("modelled")
                && html.contains("Nothing\nin this report is measured on real hardware")
        );
        assert!(!html.contains("NaN") && !html.contains("inf"));
        let summary: serde_json::Value = serde_json::from_str(&report.summary().unwrap()).unwrap();
        assert_eq!(summary["figure7"]["boxes"].as_array().unwrap().len(), 16);
        assert_eq!(summary["figure8"]["runs"].as_array().unwrap().len(), 4);
        assert_eq!(report.groups.csv().lines().count(), 17);
        assert_eq!(report.ftp.csv().lines().count(), 4 * ftp::ROUNDS + 1);
    }
}
