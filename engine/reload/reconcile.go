package reload

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// Defaults of [Options].
const (
	DefaultGrace  = 5 * time.Second
	DefaultSettle = time.Second
)

// A read that would remove at least massCount resources and more than half of
// them is taken for an accident.
const massCount = 10

// retry is when to look again at a change that was refused together with a
// removal.
const retry = time.Second

// Codes of the diagnostics made here.
const (
	// CodeStillReferenced marks a resource deleted from the files that others use.
	CodeStillReferenced specs.Code = "still-referenced"
	// CodeRootUnavailable marks a watched path that is missing or not readable
	// in all its parts.
	CodeRootUnavailable specs.Code = "root-unavailable"
	// CodeRootRemounted marks a watched path that is on another file system
	// than before.
	CodeRootRemounted specs.Code = "root-remounted"
	// CodeMassRemoval marks a read that would remove most resources.
	CodeMassRemoval specs.Code = "mass-removal"
	// CodeRejectedTogether marks changes refused because the set as a whole is
	// not valid and no single resource is to blame.
	CodeRejectedTogether specs.Code = "rejected-together"
)

// State says how a resource in the files relates to what runs.
type State string

// The states.
const (
	// OK runs as the files say.
	OK State = "ok"
	// Stale runs in its last good version; the reason says why.
	Stale State = "stale"
	// Removing is absent from the files and runs until its deadline.
	Removing State = "removing"
	// Rejected does not run: it has errors and no good version.
	Rejected State = "rejected"
)

// Reason says why a resource is not [OK].
type Reason string

// The reasons.
const (
	// Unparsed: the file that had it last does not parse.
	Unparsed Reason = "file does not parse"
	// Invalid: its version in the files has errors.
	Invalid Reason = "invalid"
	// Referenced: it was deleted, others that run still use it.
	Referenced Reason = "deleted but still referenced"
	// HeldBack: it is absent, but nothing is removed while an alarm is on.
	HeldBack Reason = "removal held back"
	// Absent: it is no longer in the files.
	Absent Reason = "deleted"
)

// Status is the state of one resource.
type Status struct {
	Ref    specs.Ref `json:"ref"`
	State  State     `json:"state"`
	Reason Reason    `json:"reason,omitempty"`
	// Detail completes the reason: the file, the error, or who uses it.
	Detail string `json:"detail,omitempty"`
	// Pos is where the version that runs came from; of a rejected one, nowhere.
	Pos specs.Pos `json:"pos"`
	// Until is when a resource that is Removing will be removed.
	Until time.Time `json:"until,omitzero"`
}

// String is the status on one line, without the deadline.
func (s Status) String() string {
	text := s.Ref.String() + " " + string(s.State)
	if s.Reason != "" {
		text += ": " + string(s.Reason)
	}
	if s.Detail != "" {
		text += " (" + s.Detail + ")"
	}
	return text
}

// Options configure a [Reconciler].
type Options struct {
	// Check finds what is wrong with a set as a whole: references, conflicts,
	// what does not compile. An error with a Ref makes that resource invalid.
	// The resources in invalid are in the files, but not in the set, because of
	// errors of their own. It must be pure, and quick for what it has seen
	// before: it is called at least once per decision. Nil finds nothing.
	Check func(set *specs.Set, invalid ...specs.Ref) specs.Diagnostics
	// Grace is how long a resource absent from the files keeps running;
	// 0 removes it at once. See [DefaultGrace].
	Grace time.Duration
	// Settle is how long a problem must last before it is reported as new, so
	// that a half-written file is no news; 0 reports at once. The problems of
	// the first read are reported at once. See [DefaultSettle].
	Settle time.Duration
}

// Decision is what follows from one read of the files.
type Decision struct {
	// Set is what shall run.
	Set *specs.Set
	// Plan is the way from the accepted set to Set.
	Plan Plan
	// Statuses tell about every resource that runs or is in the files, sorted
	// by kind and name.
	Statuses []Status
	// Diagnostics are all problems at the moment, sorted, alarms included.
	Diagnostics specs.Diagnostics
	// Alarms are those problems because of which nothing is removed.
	Alarms specs.Diagnostics
	// NewDiagnostics are the problems to report now: each is in exactly one
	// decision for as long as it lasts.
	NewDiagnostics specs.Diagnostics
	// Recovered are problems that were reported and are gone.
	Recovered specs.Diagnostics
	// Again is when to read and decide again even if no file changes; zero
	// when there is no need.
	Again time.Time
}

// Reconciler decides from read to read what shall run. It keeps the last good
// version of every resource and survives a restart through [Reconciler.Encode].
// Methods must not be called concurrently.
type Reconciler struct {
	o        Options
	accepted map[specs.Ref]*specs.Resource
	// lastSeen is the file an accepted resource was last defined in, valid or not.
	lastSeen map[specs.Ref]string
	absent   map[specs.Ref]absence
	devices  map[string]uint64
	started  bool
	problems map[problem]*news
}

// absence is the state of an accepted resource that is not in the files.
type absence struct {
	since time.Time
	// held says that an alarm keeps it; its grace begins when that ends.
	held bool
}

// New returns a Reconciler to which nothing was accepted yet.
func New(o Options) *Reconciler {
	if o.Check == nil {
		o.Check = func(*specs.Set, ...specs.Ref) specs.Diagnostics { return nil }
	}
	return &Reconciler{
		o:        o,
		accepted: map[specs.Ref]*specs.Resource{},
		lastSeen: map[specs.Ref]string{},
		absent:   map[specs.Ref]absence{},
		devices:  map[string]uint64{},
		problems: map[problem]*news{},
	}
}

// Accepted returns the set accepted last, or restored; empty if there is none.
// The caller must not change it.
func (r *Reconciler) Accepted() *specs.Set {
	return &specs.Set{Resources: r.accepted}
}

// Accept makes the set of a decision the last good one. Call it after the set
// was applied; without it the next decision plans the same changes again.
func (r *Reconciler) Accept(d Decision) {
	r.accepted = d.Set.Resources
	seen := make(map[specs.Ref]string, len(r.accepted))
	for ref, res := range r.accepted {
		if seen[ref] = r.lastSeen[ref]; seen[ref] == "" {
			seen[ref] = res.Pos.File
		}
	}
	r.lastSeen = seen
	maps.DeleteFunc(r.absent, func(ref specs.Ref, _ absence) bool { return r.accepted[ref] == nil })
}

// Next decides what shall run, given everything one read of the files gave.
// Prune removes all absent resources that nothing uses at once, whatever
// alarm would hold them back. It fails only at the start, when a root is
// missing or unreadable: without it, nobody knows what shall run.
func (r *Reconciler) Next(l *specs.Loaded, now time.Time, prune bool) (Decision, error) {
	if !r.started {
		if err := rootErrors(l); err != nil {
			return Decision{}, err
		}
	}
	f := r.classify(l)
	r.noticeAbsence(f, now)
	alarms := r.checkRoots(l.Roots, len(f.gone) == 0 || prune)

	c := &choice{Reconciler: r, findings: f, now: now, prune: prune, rootAlarm: len(alarms) > 0}
	c.settle()
	if c.massRemoval {
		alarms = append(alarms, specs.Diagnostic{
			Severity: specs.Error, Code: CodeMassRemoval,
			Message: "most resources are gone from the files; none is removed",
			Hint:    fmt.Sprintf("%d of %d are held back: restore the files, or confirm with engine reload --prune", c.unused, len(r.accepted)),
		})
	}
	d := Decision{
		Set:    &specs.Set{Resources: c.set},
		Alarms: alarms.Sort(),
	}
	d.Plan = Diff(r.Accepted(), d.Set)
	d.Statuses, d.Again = c.statuses()
	if len(d.Plan.Of(Removed)) > 0 && c.refused {
		// What is removed now may be all that stood in the way of a change.
		d.Again = earlier(d.Again, now.Add(retry))
	}
	d.Diagnostics = slices.Concat(l.Diagnostics, c.diagnostics, d.Alarms).Sort()
	r.report(&d, now)
	r.started = true
	return d, nil
}

// rootErrors tells which roots cannot be read at all.
func rootErrors(l *specs.Loaded) error {
	if len(l.Roots) == 0 {
		return errors.New("no spec files or directories given")
	}
	var errs []error
	for _, d := range l.Diagnostics {
		isRoot := slices.ContainsFunc(l.Roots, func(r specs.Root) bool { return r.Path == d.Pos.File })
		if isRoot && d.Code == specs.CodeUnreadable {
			errs = append(errs, fmt.Errorf("spec path %s %s", d.Pos.File, d.Message))
		}
	}
	return errors.Join(errs...)
}

// checkRoots returns an alarm for every root that is not what it was. With
// adopt, a root on another file system becomes the normal case.
func (r *Reconciler) checkRoots(roots []specs.Root, adopt bool) specs.Diagnostics {
	var alarms specs.Diagnostics
	for _, root := range roots {
		known, ok := r.devices[root.Path]
		switch {
		case root.Err != nil:
			alarms = append(alarms, specs.Diagnostic{
				Pos: specs.Pos{File: root.Path}, Severity: specs.Error, Code: CodeRootUnavailable,
				Message: fmt.Sprintf("spec path cannot be read: %v", root.Err),
				Hint:    "what it held keeps running: restore or mount it, or remove the rest with engine reload --prune",
			})
		case ok && known != root.Device && known != 0 && root.Device != 0 && !adopt:
			alarms = append(alarms, specs.Diagnostic{
				Pos: specs.Pos{File: root.Path}, Severity: specs.Error, Code: CodeRootRemounted,
				Message: "spec path is on another file system than before and lacks resources; none is removed",
				Hint:    "mount the former one, or confirm with engine reload --prune",
			})
		default:
			r.devices[root.Path] = root.Device
		}
	}
	return alarms
}
