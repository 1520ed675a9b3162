package reload

import (
	"time"

	"github.com/sensor-engine/engine/specs"
)

// problem identifies a diagnostic from read to read. The line is left out: it
// moves while somebody edits above.
type problem struct {
	file, path, message string
	ref                 specs.Ref
	code                specs.Code
}

// news is what was told about a problem.
type news struct {
	diagnostic specs.Diagnostic
	present    bool
	since      time.Time // when present last flipped
	reported   bool
}

// report sorts out which problems are news.
func (r *Reconciler) report(d *Decision, now time.Time) {
	current := make(map[problem]bool, len(d.Diagnostics))
	for _, diag := range d.Diagnostics {
		p := problem{diag.Pos.File, diag.Path, diag.Message, diag.Ref, diag.Code}
		current[p] = true
		n := r.problems[p]
		if n == nil {
			n = &news{since: now, present: true}
			r.problems[p] = n
		}
		n.diagnostic = diag
	}
	for p, n := range r.problems {
		if n.present != current[p] {
			n.present, n.since = current[p], now
		}
		switch {
		case !n.present && !n.reported:
			delete(r.problems, p) // over before it was told
			continue
		case n.present == n.reported:
			continue // told already
		}
		if settled := n.since.Add(r.o.Settle); r.started && settled.After(now) {
			d.Again = earlier(d.Again, settled)
			continue
		}
		if n.present {
			d.NewDiagnostics = append(d.NewDiagnostics, n.diagnostic)
			n.reported = true
		} else {
			d.Recovered = append(d.Recovered, n.diagnostic)
			delete(r.problems, p)
		}
	}
	d.NewDiagnostics, d.Recovered = d.NewDiagnostics.Sort(), d.Recovered.Sort()
}

// earlier returns the earlier of two times of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
