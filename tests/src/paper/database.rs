//! Figure 6: a database in a guest, through a switch to a VF and back, as the scenario `database` measured it.

use std::fmt::Write;

use super::chart::{Chart, Series};
use crate::bench::logic::pairs::median;
use crate::scenario::database::{Database, Mark, Sample};

/// The figure's data.
pub fn csv(database: &Database) -> String {
    let mut out = "at_s,transactions_per_s,p95_ms,errors_per_s,path\n".to_owned();
    for sample in &database.samples {
        let Sample { at_s, tps, p95_ms, errors } = sample;
        let path = path_at(database, *at_s);
        let _ = writeln!(out, "{at_s:.0},{tps:.2},{p95_ms:.2},{errors:.2},{path}");
    }
    out
}

/// A section of the report.
pub fn html(database: &Database) -> String {
    let Database { accel, pool, samples, marks } = database;
    let mut rows = String::new();
    for path in ["PV", "VF", "switching"] {
        let of = || samples.iter().filter(|sample| path_at(database, sample.at_s) == path);
        let mut tps: Vec<f64> = of().map(|sample| sample.tps).collect();
        let mut p95: Vec<f64> = of().map(|sample| sample.p95_ms).collect();
        let least = tps.iter().copied().fold(f64::INFINITY, f64::min);
        if let (Some(tps), Some(p95)) = (median(&mut tps), median(&mut p95)) {
            let count = of().count();
            let _ = writeln!(
                rows,
                "<tr><td>{path}<td>{count}<td>{tps:.0}<td>{least:.0}<td>{p95:.1} ms"
            );
        }
    }
    let silent = samples.iter().filter(|sample| sample.tps == 0.0).count();
    let errors: f64 = samples.iter().map(|sample| sample.errors).sum();
    let (switches, seconds) = (marks.len(), samples.len());
    format!(
        r#"<h2>Figure 6: a database through switches <span class="tag">measured on emulated hardware</span></h2>
<p>MariaDB in a Debian guest ({accel}, {pool} VF), asked by sysbench (<code>oltp_point_select</code>, four connections) from beside the
bridge. Shaded: a switch, from its first step to its last.</p>
{}
<table><tr><th>path<th>seconds<th>transactions/s, median<th>least<th>95th percentile, median
{rows}</table>
<p><b>Beside the paper.</b> What a switch does to the database is the point here: in {seconds} seconds with {switches} switches {silent}
seconds had no transaction, and {errors:.0} failed. How much more the database does over a VF is the emulated processor's and the
emulated NIC's, and not compared; what else moves the curve is what the machine does beside.</p>
"#,
        chart(database).draw()
    )
}

fn chart(database: &Database) -> Chart {
    let points = database.samples.iter().map(|sample| (sample.at_s, sample.tps)).collect();
    let band = |mark: &Mark| {
        let name = if mark.direction == "to_vf" { "to VF" } else { "to PV" };
        (mark.from_s, mark.to_s, name.to_owned())
    };
    Chart {
        title: "Transactions a second through switches",
        x_label: "seconds",
        y_label: "transactions/s",
        series: vec![Series { name: "transactions/s".into(), points, dots: false }],
        bands: database.marks.iter().map(band).collect(),
        ..Chart::default()
    }
}

/// Over which path the second that ends then went.
fn path_at(database: &Database, at_s: f64) -> &'static str {
    let mut path = "PV";
    for mark in &database.marks {
        if at_s >= mark.from_s && at_s - 1.0 <= mark.to_s {
            return "switching";
        }
        if at_s > mark.to_s {
            path = if mark.direction == "to_vf" { "VF" } else { "PV" };
        }
    }
    path
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::paper) fn database() -> Database {
        let sample =
            |second: u32| Sample { at_s: second.into(), tps: 100.0, p95_ms: 9.0, errors: 0.0 };
        let mark = |from_s, direction: &str| Mark {
            from_s,
            to_s: from_s + 1.5,
            direction: direction.into(),
        };
        Database {
            accel: "tcg".into(),
            pool: "emulated".into(),
            samples: (1..=20).map(sample).collect(),
            marks: vec![mark(5.2, "to_vf"), mark(12.2, "to_pv")],
        }
    }

    #[test]
    fn each_second_has_its_path() {
        let at = [5.0, 6.0, 7.0, 8.0, 12.0, 13.0, 14.0, 15.0].map(|at| path_at(&database(), at));
        let wanted = ["PV", "switching", "switching", "VF", "VF", "switching", "switching", "PV"];
        assert_eq!(at, wanted);
        assert!(html(&database()).contains("<tr><td>VF<td>5<td>100<td>100<td>9.0 ms"));
        assert!(csv(&database()).contains("\n6,100.00,9.00,0.00,switching\n"));
    }
}
