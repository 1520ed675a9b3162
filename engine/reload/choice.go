package reload

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/sensor-engine/engine/specs"
)

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
		i := slices.IndexFunc(broken, func(path string) bool { return within(last, path) })
		if i < 0 && len(broken) > 0 && !slices.ContainsFunc(l.Roots, func(root specs.Root) bool { return within(last, root.Path) }) {
			i = 0 // the roots are called otherwise since a restart: any file may be the one
		}
		if i >= 0 {
			f.unparsed[ref] = broken[i]
		} else {
			f.gone[ref] = true
		}
	}
	return f
}

// within reports whether file is path or below it.
func within(file, path string) bool {
	rel, err := filepath.Rel(path, file)
	return err == nil && filepath.IsLocal(rel)
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
	refused     bool // something was reverted or dropped because of the check
	diagnostics specs.Diagnostics
}

// settle builds the set and repairs it until the check finds no errors: what
// changed gives way to what runs.
func (c *choice) settle() {
	c.reverted, c.dropped = maps.Clone(c.invalid), map[specs.Ref]string{}
	maps.DeleteFunc(c.reverted, func(ref specs.Ref, _ string) bool { return c.accepted[ref] == nil })
	for {
		c.build()
		found := c.o.Check(&specs.Set{Resources: c.set}, c.rejected()...)
		c.diagnostics = append(c.diagnostics, found...)
		if !found.HasErrors() || !c.repair(found) {
			break
		}
		c.refused = true
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

// rejected lists the resources in the files of which no version runs.
func (c *choice) rejected() []specs.Ref {
	var refs []specs.Ref
	for _, m := range []map[specs.Ref]string{c.invalid, c.dropped} {
		for ref := range m {
			if c.set[ref] == nil {
				refs = append(refs, ref)
			}
		}
	}
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs)
}

// build makes the set from the choices so far.
func (c *choice) build() {
	c.set = make(map[specs.Ref]*specs.Resource, len(c.current))
	maps.Copy(c.set, c.current)
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
	blamed := slices.SortedFunc(maps.Keys(flagged), compareRefs)
	progress := false
	for _, ref := range blamed {
		progress = c.undo(ref, flagged[ref]) || progress
	}
	if progress {
		return true
	}
	// What runs is wrong only because of a change elsewhere: in what it uses,
	// or at the other place an error names.
	for _, ref := range blamed {
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
	for _, ref := range blamed {
		if alone[ref] {
			c.dropped[ref] = flagged[ref]
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
	for _, ref := range blamed {
		c.dropped[ref] = flagged[ref]
	}
	return len(blamed) > 0
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
	for _, ref := range c.rejected() {
		all[ref] = nil
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
