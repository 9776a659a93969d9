//! Section 6.3, figure 5: how much sooner packets are through over a VF, by their rate and size, as `flexvf calibrate`
//! measured it on the testbed.

use std::fmt::Write;

use flexvf_protocol::PciAddress;
use qmp_allocator::config::{Calibration, Point};
use qmp_allocator::logic::gain::Model;

use super::chart::{Chart, Series};

/// The figure's data.
pub fn csv(calibrations: &[Calibration]) -> String {
    let mut out = "vf,packets_per_s,bytes,pv_us,vf_us,pv_over_vf,pv_lost,vf_lost\n".to_owned();
    for Calibration { vf, points, .. } in calibrations {
        for point in points {
            let Point { pps, bytes, pv_us, vf_us, pv_lost, vf_lost } = point;
            let boost = boost(point);
            let _ = writeln!(
                out,
                "{vf},{pps:.1},{bytes},{pv_us:.3},{vf_us:.3},{boost:.4},{pv_lost:.4},{vf_lost:.4}"
            );
        }
    }
    out
}

/// A section of the report.
pub fn html(calibrations: &[Calibration]) -> String {
    let each: String = calibrations.iter().map(of_one).collect();
    format!(
        r#"<h2>Figure 5: the boost by packet rate and size <span class="tag">measured on emulated hardware</span></h2>
<p>Time of a packet over PV by its time over a VF (half of an echo's round trip each, at the median): above 1 the VF is the
faster. Measured by <code>flexvf calibrate</code> from the remote peer, of one guest; lines are payload sizes. Where a path lost more
than half of the echoes there is no point.</p>
{each}<p><b>Beside the paper.</b> Guests and NICs are emulated here: the shape is the testbed's and no real NIC's.</p>
"#
    )
}

fn of_one(calibration: &Calibration) -> String {
    let mut rows = String::new();
    for point in &calibration.points {
        let Point { pps, bytes, pv_us, vf_us, pv_lost, vf_lost } = point;
        let (boost, lost) = (boost(point), 100.0 * pv_lost.max(*vf_lost));
        let _ = writeln!(
            rows,
            "<tr><td>{pps:.0}<td>{bytes}<td>{pv_us:.0} µs<td>{vf_us:.0} µs<td>{boost:.2}<td>{lost:.1} %"
        );
    }
    let vf = &calibration.vf;
    let what = if vf.parse::<PciAddress>().is_ok() {
        format!("A VF ({vf}) of QEMU's 82576 in an emulated host, by vfio-pci")
    } else {
        format!("QEMU's e1000e on a TAP ({vf}) in place of a VF: each access to it costs an exit")
    };
    format!(
        "<h3>{what}</h3>\n{}\n<p>{}</p>\n<table><tr><th>packets/s<th>bytes<th>PV<th>VF<th>PV / VF<th>most lost\n{rows}</table>\n",
        chart(calibration).draw(),
        found(calibration)
    )
}

/// What the data say, in words.
fn found(calibration: &Calibration) -> String {
    let mut sizes: Vec<usize> = calibration.points.iter().map(|point| point.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let of = |bytes: usize| of_size(calibration, bytes);
    let grown = |bytes: &usize| match (of(*bytes).first(), of(*bytes).last()) {
        (Some(first), Some(last)) => boost(last) > boost(first),
        _ => false,
    };
    let grows = sizes.iter().filter(|bytes| grown(bytes)).count();
    let faster = calibration.points.iter().filter(|point| boost(point) > 1.0).count();
    let most = calibration.points.iter().map(boost).fold(0.0, f64::max);
    let gain = calibration.fit().map_or_else(
        |_| String::new(),
        |curve| {
            let (pps, _) = curve.points().last().copied().unwrap_or_default();
            format!(
                " The fitted curve is worth {:.0} µs a second at {pps} packets/s.",
                curve.gain(f64::from(pps))
            )
        },
    );
    format!(
        "The activity strategy presumes a boost that does not fall with the packet rate; here it is larger at the highest rate than at the lowest for {grows} of {} \
         sizes. The VF is the faster path in {faster} of {} cells, {most:.2} times at the most.{gain}",
        sizes.len(),
        calibration.points.len()
    )
}

fn chart(calibration: &Calibration) -> Chart {
    let mut sizes: Vec<usize> = calibration.points.iter().map(|point| point.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let series = |bytes: usize| Series {
        name: format!("{bytes} bytes"),
        points: of_size(calibration, bytes).iter().map(|it| (it.pps, boost(it))).collect(),
        dots: true,
    };
    Chart {
        title: "Boost of a VF by packet rate and size",
        x_label: "packets per second, both directions (log)",
        y_label: "time over PV / time over VF",
        log_x: true,
        level: Some(1.0),
        series: sizes.into_iter().map(series).collect(),
        bands: Vec::new(),
    }
}

/// By rate.
fn of_size(calibration: &Calibration, bytes: usize) -> Vec<Point> {
    let points = calibration.points.iter().filter(|point| point.bytes == bytes);
    let mut points: Vec<Point> = points.cloned().collect();
    points.sort_by(|a, b| a.pps.total_cmp(&b.pps));
    points
}

fn boost(point: &Point) -> f64 {
    point.pv_us / point.vf_us.max(1e-9)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::paper) fn calibration() -> Calibration {
        let point = |pps, bytes, pv_us| Point {
            pps,
            bytes,
            pv_us,
            vf_us: 100.0,
            pv_lost: 0.01,
            vf_lost: 0.0,
        };
        let points = vec![
            point(2000.0, 64, 300.0),
            point(200.0, 64, 150.0),
            point(200.0, 1400, 90.0),
            point(2000.0, 1400, 80.0),
        ];
        Calibration { vm: "vm1".into(), vf: "vf0".into(), points }
    }

    #[test]
    fn what_is_found_is_what_the_data_say() {
        let found = found(&calibration());
        assert!(found.contains("for 1 of 2 sizes"), "{found}");
        assert!(found.contains("in 2 of 4 cells, 3.00 times at the most"), "{found}");
        let all = [calibration(), Calibration { vf: "0000:01:10.0".into(), ..calibration() }];
        assert!(csv(&all).contains("\nvf0,2000.0,64,300.000,100.000,3.0000,0.0100,0.0000\n"));
        let told = html(&all);
        assert_eq!(told.matches("<svg ").count(), 2);
        assert!(told.contains("on a TAP (vf0)") && told.contains("by vfio-pci"));
    }
}
