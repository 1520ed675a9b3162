package reload

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
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

// Codes of the diagnostics made here.
const (
	// CodeStillReferenced marks a resource deleted from the files that others use.
	CodeStillReferenced specs.Code = "still-referenced"
	// CodeRootUnavailable marks a watched path that is missing or unreadable.
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
	// It must be pure, and quick for what it has seen before: it is called at
	// least once per read. Nil finds nothing.
	Check func(*specs.Set) specs.Diagnostics
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

// New returns a Reconciler to which nothing was accepted yet.
func New(o Options) *Reconciler {
	if o.Check == nil {
		o.Check = func(*specs.Set) specs.Diagnostics { return nil }
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
		if err := rootErrors(l.Roots); err != nil {
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
			Message: fmt.Sprintf("%d of %d resources are gone from the files; none is removed", c.unused, len(r.accepted)),
			Hint:    "restore the files, or confirm with engine reload --prune",
		})
	}
	d := Decision{
		Set:    &specs.Set{Resources: c.set},
		Alarms: alarms.Sort(),
	}
	d.Plan = Diff(r.Accepted(), d.Set)
	d.Statuses, d.Again = c.statuses()
	d.Diagnostics = slices.Concat(l.Diagnostics, c.diagnostics, d.Alarms).Sort()
	r.report(&d, now)
	r.started = true
	return d, nil
}

func rootErrors(roots []specs.Root) error {
	if len(roots) == 0 {
		return errors.New("no spec files or directories given")
	}
	var errs []error
	for _, root := range roots {
		if root.Err != nil {
			errs = append(errs, fmt.Errorf("spec path %s cannot be read: %w", root.Path, root.Err))
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
				Message: fmt.Sprintf("spec path cannot be read: %v; no resource is removed", root.Err),
				Hint:    "restore or mount it, or confirm with engine reload --prune",
			})
		case ok && known != root.Device && !adopt:
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

// findings sort what a read gave by what it means for each resource.
type findings struct {
	current map[specs.Ref]*specs.Resource
	// invalid holds why a resource's version in the files cannot be used.
	invalid map[specs.Ref]string
	// unparsed holds the broken file an accepted resource is expected in.
	unparsed map[specs.Ref]string
	// gone are accepted resources that are in no file.
	gone map[specs.Ref]bool
}

func (r *Reconciler) classify(l *specs.Loaded) findings {
	f := findings{
		current:  make(map[specs.Ref]*specs.Resource, len(l.Resources)),
		invalid:  map[specs.Ref]string{},
		unparsed: map[specs.Ref]string{},
		gone:     map[specs.Ref]bool{},
	}
	for _, res := range l.Resources {
		f.current[res.Ref()] = res
	}
	for _, ref := range l.Invalid {
		if f.current[ref] == nil {
			f.invalid[ref] = ""
		}
	}
	for _, d := range l.Diagnostics {
		if d.Severity != specs.Error || d.Ref == (specs.Ref{}) || f.invalid[d.Ref] != "" {
			continue
		}
		// A valid document with an error is one of several definitions. The
		// version that runs stays, whichever file comes first; without one
		// the first does.
		if cur := f.current[d.Ref]; cur != nil {
			if old := r.accepted[d.Ref]; old == nil || old.Hash == cur.Hash {
				continue
			}
			delete(f.current, d.Ref)
		}
		f.invalid[d.Ref] = d.Message
	}

	defined := map[specs.Ref][]string{}
	var broken []string
	for _, file := range l.Files {
		if file.Broken {
			broken = append(broken, file.Path)
		}
		for _, ref := range file.Refs {
			defined[ref] = append(defined[ref], file.Path)
		}
	}
	for ref := range r.accepted {
		files := defined[ref]
		if res := f.current[ref]; res != nil && len(files) == 0 {
			files = []string{res.Pos.File}
		}
		if _, invalid := f.invalid[ref]; len(files) > 0 || invalid {
			if len(files) > 0 && !slices.Contains(files, r.lastSeen[ref]) {
				r.lastSeen[ref] = files[0]
			}
			continue
		}
		last := r.lastSeen[ref]
		if i := slices.IndexFunc(broken, func(path string) bool { return within(last, path) }); i >= 0 {
			f.unparsed[ref] = broken[i]
		} else {
			f.gone[ref] = true
		}
	}
	return f
}

// within reports whether file is path or below it: a directory that cannot be
// read is a broken file, too.
func within(file, path string) bool {
	return file == path || strings.HasPrefix(file, strings.TrimSuffix(path, string(filepath.Separator))+string(filepath.Separator))
}

func (r *Reconciler) noticeAbsence(f findings, now time.Time) {
	maps.DeleteFunc(r.absent, func(ref specs.Ref, _ absence) bool { return !f.gone[ref] })
	for ref := range f.gone {
		if _, ok := r.absent[ref]; !ok {
			r.absent[ref] = absence{since: now}
		}
	}
}

// choice finds the desired set of one read.
type choice struct {
	*Reconciler
	findings
	now       time.Time
	prune     bool
	rootAlarm bool

	// reverted run in their last good version although the files have another
	// one; dropped do not run. The values say why. Both only grow, so settle ends.
	reverted, dropped map[specs.Ref]string

	set         map[specs.Ref]*specs.Resource
	users       map[specs.Ref][]specs.Ref // of absent resources that stay because of them
	unused      int                       // absent resources nothing uses
	massRemoval bool
	diagnostics specs.Diagnostics
}

// settle builds the set and repairs it until the check finds no errors: what
// changed gives way to what runs.
func (c *choice) settle() {
	c.reverted, c.dropped = maps.Clone(c.invalid), map[specs.Ref]string{}
	maps.DeleteFunc(c.reverted, func(ref specs.Ref, _ string) bool { return c.accepted[ref] == nil })
	for {
		c.build()
		found := c.o.Check(&specs.Set{Resources: c.set})
		c.diagnostics = append(c.diagnostics, found...)
		if !found.HasErrors() || !c.repair(found) {
			break
		}
	}
	c.finishAbsence()
	for ref, users := range c.users {
		if c.removable(ref) && !c.held() {
			c.diagnostics = append(c.diagnostics, specs.Diagnostic{
				Pos: c.set[users[0]].Pos, Severity: specs.Warning, Code: CodeStillReferenced, Ref: ref,
				Message: fmt.Sprintf("%s was deleted but still runs, because it is used by %s", ref, joinRefs(users)),
				Hint:    "restore it, or delete what uses it",
			})
		}
	}
}

// build makes the set from the choices so far.
func (c *choice) build() {
	c.set = make(map[specs.Ref]*specs.Resource, len(c.current))
	for ref, res := range c.current {
		c.set[ref] = res
	}
	for ref := range c.reverted {
		c.set[ref] = c.accepted[ref]
	}
	for ref := range c.unparsed {
		c.set[ref] = c.accepted[ref]
	}
	for ref := range c.dropped {
		delete(c.set, ref)
	}

	c.users = map[specs.Ref][]specs.Ref{}
	c.keepUsed(slices.Collect(maps.Keys(c.set)))
	c.unused = 0
	due := false
	for ref := range c.gone {
		if c.set[ref] == nil && c.dropped[ref] == "" {
			c.unused++
			due = due || c.absent[ref].held || c.removable(ref)
		}
	}
	c.massRemoval = !c.prune && due && c.unused >= massCount && 2*c.unused > len(c.accepted)
	var kept []specs.Ref
	for ref := range c.gone {
		if c.set[ref] == nil && c.dropped[ref] == "" && c.stays(ref) {
			kept = append(kept, ref)
		}
	}
	for _, ref := range kept {
		c.set[ref] = c.accepted[ref]
	}
	c.keepUsed(kept)
}

// keepUsed adds the absent resources that those in queue use, and so on.
func (c *choice) keepUsed(queue []specs.Ref) {
	slices.SortFunc(queue, compareRefs)
	for ; len(queue) > 0; queue = queue[1:] {
		for _, used := range c.set[queue[0]].Uses {
			if !c.gone[used] || c.dropped[used] != "" {
				continue
			}
			if !slices.Contains(c.users[used], queue[0]) {
				c.users[used] = append(c.users[used], queue[0])
			}
			if c.set[used] == nil {
				c.set[used] = c.accepted[used]
				queue = append(queue, used)
			}
		}
	}
}

// held reports whether an alarm is on that keeps everything.
func (c *choice) held() bool { return !c.prune && (c.rootAlarm || c.massRemoval) }

// stays reports whether an absent resource that nothing uses is kept for now.
func (c *choice) stays(ref specs.Ref) bool { return c.held() || !c.removable(ref) }

// removable reports whether the grace of an absent resource is over.
func (c *choice) removable(ref specs.Ref) bool {
	return c.prune || !c.deadline(ref).After(c.now)
}

// deadline is when the grace of an absent resource ends. When an alarm ends,
// it begins anew: files that come back come one by one.
func (c *choice) deadline(ref specs.Ref) time.Time {
	a := c.absent[ref]
	if a.held {
		a.since = c.now
	}
	return a.since.Add(c.o.Grace)
}

// finishAbsence remembers what an alarm holds back.
func (c *choice) finishAbsence() {
	for ref := range c.gone {
		a := c.absent[ref]
		if a.held {
			a.since = c.now
		}
		a.held = c.held()
		c.absent[ref] = a
	}
}

// repair reverts or drops something because of the errors found. It returns
// false when nothing is left to be done.
func (c *choice) repair(found specs.Diagnostics) bool {
	flagged := map[specs.Ref]string{}
	var errs specs.Diagnostics
	for _, d := range found {
		if d.Severity != specs.Error {
			continue
		}
		errs = append(errs, d)
		if c.set[d.Ref] != nil && flagged[d.Ref] == "" {
			flagged[d.Ref] = cmp.Or(d.Message, string(Invalid))
		}
	}
	progress := false
	for ref, why := range flagged {
		progress = c.undo(ref, why) || progress
	}
	if progress {
		return true
	}
	// What runs is wrong only because of a change elsewhere: in what it uses,
	// or at the other place an error names.
	for ref := range flagged {
		for used := range uses(ref, c.set) {
			progress = c.undo(used, "the new version breaks "+ref.String()) || progress
		}
	}
	for _, d := range errs {
		for _, pos := range d.Related {
			if ref, ok := c.at(pos); ok {
				progress = c.undo(ref, d.Message) || progress
			}
		}
	}
	if progress {
		return true
	}
	// What was accepted may be invalid today, after an upgrade. Then only that goes.
	alone := map[specs.Ref]bool{}
	for _, d := range c.o.Check(c.Accepted()) {
		alone[d.Ref] = alone[d.Ref] || d.Severity == specs.Error
	}
	for ref, why := range flagged {
		if alone[ref] {
			c.dropped[ref] = why
			progress = true
		}
	}
	if progress {
		return true
	}
	for ref := range c.set {
		progress = c.undo(ref, "rejected together with other changes") || progress
	}
	if progress {
		c.diagnostics = append(c.diagnostics, specs.Diagnostic{
			Pos: errs[0].Pos, Severity: specs.Error, Code: CodeRejectedTogether,
			Message: "all changes are refused, because the errors cannot be traced to one of them",
			Hint:    "correct the other errors first",
		})
		return true
	}
	for ref, why := range flagged {
		c.dropped[ref] = why
	}
	return len(flagged) > 0
}

// undo takes back what the files changed about a resource. It returns false
// when it is as it was accepted.
func (c *choice) undo(ref specs.Ref, why string) bool {
	why = cmp.Or(why, string(Invalid))
	old, cur := c.accepted[ref], c.set[ref]
	switch {
	case cur == nil || c.dropped[ref] != "":
		return false
	case old == nil:
		c.dropped[ref] = why
		return true
	case old.Hash == cur.Hash:
		return false
	}
	c.reverted[ref] = why
	return true
}

// at finds the resource of the set whose document holds pos.
func (c *choice) at(pos specs.Pos) (specs.Ref, bool) {
	var best *specs.Resource
	for _, res := range c.set {
		if res.Pos.File == pos.File && res.Pos.Line <= pos.Line && c.current[res.Ref()] == res &&
			(best == nil || res.Pos.Line > best.Pos.Line) {
			best = res
		}
	}
	if best == nil {
		return specs.Ref{}, false
	}
	return best.Ref(), true
}

// statuses tells about every resource, and when a removal is due.
func (c *choice) statuses() ([]Status, time.Time) {
	all := maps.Clone(c.set)
	for _, refs := range []map[specs.Ref]string{c.invalid, c.dropped} {
		for ref := range refs {
			if all[ref] == nil {
				all[ref] = nil
			}
		}
	}
	var again time.Time
	out := make([]Status, 0, len(all))
	for ref, res := range all {
		s := Status{Ref: ref, State: OK}
		if res != nil {
			s.Pos = res.Pos
		}
		switch {
		case res == nil:
			s.State, s.Reason = Rejected, Invalid
			if s.Detail = c.dropped[ref]; s.Detail == "" {
				s.Detail = c.invalid[ref]
			}
		case c.unparsed[ref] != "":
			s.State, s.Reason, s.Detail = Stale, Unparsed, c.unparsed[ref]
		case c.gone[ref]:
			s.Until = c.deadline(ref)
			switch {
			case c.held():
				s.State, s.Reason, s.Until = Stale, HeldBack, time.Time{}
			case c.removable(ref):
				s.State, s.Reason, s.Until = Stale, Referenced, time.Time{}
				s.Detail = "used by " + joinRefs(c.users[ref])
			default:
				s.State, s.Reason = Removing, Absent
				again = earlier(again, s.Until)
			}
		default:
			if why, ok := c.reverted[ref]; ok {
				s.State, s.Reason, s.Detail = Stale, Invalid, why
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Status) int { return compareRefs(a.Ref, b.Ref) })
	return out, again
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
