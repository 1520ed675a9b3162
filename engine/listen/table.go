// Package listen owns the engine's HTTP listeners: the table of routes that
// sources and endpoints add and remove while requests are served ([Table]),
// and the server with its limits ([Server]). It knows no source and no
// function, and reads no body.
package listen

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/sources"
)

// Table is an http.Handler that serves routes which come and go. The patterns
// and their precedence are those of http.ServeMux, without its redirects: a
// path that is not clean is not found. Everything is safe for concurrent use;
// a lookup takes no lock. The zero value is an empty table that is not open.
type Table struct {
	// Handover is how long requests for a route that was removed are held in
	// case it comes back, which is what a changed spec looks like; 0 answers
	// 404 at once. Logger gets panics of handlers; nil is slog.Default. Set
	// both before use.
	Handover time.Duration
	Logger   *slog.Logger

	opened atomic.Bool
	tree   atomic.Pointer[tree] // nil when it must be built again

	mu      sync.Mutex
	routes  []*entry
	leaving []departure
	changed chan struct{} // closed when a route is added
}

// entry is one route that is served.
type entry struct {
	owner   string
	route   sources.Route
	segs    []sources.Segment
	names   []string // of the wildcards, "" for a nameless one
	handler http.Handler
}

// departure is a removed route that may come back.
type departure struct {
	tree  *tree
	until time.Time
}

// ConflictError says that a route claims requests of another one.
type ConflictError struct {
	// Owner wants Route; Other has OtherRoute.
	Owner, Other      string
	Route, OtherRoute sources.Route
}

// Error names both routes and their owners.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("the route %s of %s conflicts with %s of %s: give one of them another path",
		describe(e.Route), e.Owner, describe(e.OtherRoute), e.Other)
}

func describe(r sources.Route) string {
	path := strings.Join(r.Hosts, ",") + r.Path
	if len(r.Methods) == 0 {
		return path
	}
	return strings.Join(r.Methods, ",") + " " + path
}

// Handle serves r with h until remove is called, which may be done twice.
// owner names it in errors and logs, for example "EventSource/shop orders". A
// conflict with another owner's route is a *[ConflictError]; routes of the
// same owner that conflict are replaced, so that a new version of a unit can
// take over without a gap. Requests on their way when a route goes are still
// served by its handler.
func (t *Table) Handle(owner string, r sources.Route, h http.Handler) (remove func(), err error) {
	segs, err := sources.ParsePath(r.Path)
	if err != nil {
		return nil, err
	}
	e := &entry{owner: owner, route: r, segs: segs, handler: h}
	for _, s := range segs {
		if s.Wild {
			e.names = append(e.names, s.Text)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	replaced := false
	for _, o := range t.routes {
		if !sources.Overlap(o.route, o.segs, r, segs) {
			continue
		}
		if o.owner != owner {
			return nil, &ConflictError{Owner: owner, Route: r, Other: o.owner, OtherRoute: o.route}
		}
		replaced = true
	}
	if replaced {
		t.routes = slices.DeleteFunc(t.routes, func(o *entry) bool {
			return o.owner == owner && sources.Overlap(o.route, o.segs, r, segs)
		})
	}
	t.routes = append(t.routes, e)
	t.tree.Store(nil)
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return func() { t.remove(e) }, nil
}

func (t *Table) remove(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.routes, e)
	if i < 0 {
		return
	}
	t.routes = slices.Delete(t.routes, i, i+1)
	t.tree.Store(nil)
	if t.Handover > 0 {
		t.prune()
		t.leaving = append(t.leaving, departure{build([]*entry{e}), time.Now().Add(t.Handover)})
	}
}

// prune forgets the departures whose time is over. The lock should be held.
func (t *Table) prune() {
	now := time.Now()
	t.leaving = slices.DeleteFunc(t.leaving, func(d departure) bool { return !now.Before(d.until) })
}

// Open makes the table answer 404 to what it has no route for. Before, it
// answers 503 with Retry-After: a producer must not take the start of the
// engine for the end of its route.
func (t *Table) Open() { t.opened.Store(true) }

// Routes returns the routes that are served, by owner.
func (t *Table) Routes() map[string][]sources.Route {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string][]sources.Route, len(t.routes))
	for _, e := range t.routes {
		out[e.owner] = append(out[e.owner], e.route)
	}
	return out
}

func (t *Table) current() *tree {
	if tr := t.tree.Load(); tr != nil {
		return tr
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tree.Load()
	if tr == nil {
		// Built when it is first asked for: a thousand routes that are added
		// at the start make one tree and not a thousand.
		tr = build(t.routes)
		t.tree.Store(tr)
	}
	return tr
}

// ServeHTTP serves the request with the most specific route, whose wildcards
// r.PathValue returns and whose path is in r.Pattern.
func (t *Table) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for {
		// In this order: what was open before the look had its routes then.
		opened := t.opened.Load()
		tr := t.current()
		var space [8]string
		if e, values := tr.lookup(r, space[:0]); e != nil {
			t.serve(e, values, w, r)
			return
		}
		if t.comesBack(r) {
			continue
		}
		refuse(tr, opened, w, r)
		return
	}
}

func (t *Table) serve(e *entry, values []string, w http.ResponseWriter, r *http.Request) {
	for i, v := range values {
		if e.names[i] != "" {
			r.SetPathValue(e.names[i], v)
		}
	}
	r.Pattern = e.route.Path
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if v != http.ErrAbortHandler { //nolint:errorlint // a panic value, not an error chain
			log := t.Logger
			if log == nil {
				log = slog.Default()
			}
			log.Error("panic while serving a request, connection closed", "owner", e.owner, "route", describe(e.route), "panic", v, "stack", string(debug.Stack()))
		}
		// How much of an answer was written is unknown: only a broken
		// connection cannot be taken for success.
		panic(http.ErrAbortHandler)
	}()
	e.handler.ServeHTTP(w, r)
}

// comesBack waits while a route that fits has just been removed, and reports
// whether it is worth looking again.
func (t *Table) comesBack(r *http.Request) bool {
	if t.Handover <= 0 {
		return false
	}
	t.mu.Lock()
	t.prune()
	var until time.Time
	for _, d := range t.leaving {
		if e, _ := d.tree.lookup(r, nil); e != nil {
			until = d.until
		}
	}
	if until.IsZero() {
		t.mu.Unlock()
		return false
	}
	if t.tree.Load() == nil {
		t.mu.Unlock()
		return true // something changed since the lookup
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	changed := t.changed
	t.mu.Unlock()
	ctx, cancel := context.WithDeadline(r.Context(), until)
	defer cancel()
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return r.Context().Err() == nil
	}
}

func refuse(tr *tree, opened bool, w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	status, text := http.StatusNotFound, "nothing is served at this path"
	if allowed := tr.allowed(r); len(allowed) > 0 {
		h.Set("Allow", strings.Join(allowed, ", "))
		status, text = http.StatusMethodNotAllowed, "this path does not take the method"
	} else if !opened {
		h.Set("Retry-After", "1")
		status, text = http.StatusServiceUnavailable, "the engine is starting or stopping"
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"error":"` + text + "\"}\n"))
}

// tree is an immutable set of routes: those for all hosts, and those of some.
type tree struct {
	all   methods
	hosts map[string]methods
}

// methods are routes by method; "" is any method.
type methods map[string]*methodTree

type methodTree struct {
	exact map[string]*entry // by path, those without wildcards
	root  node
}

// node is what can follow a prefix of segments.
type node struct {
	literal map[string]*node
	wild    *node
	rest    *entry // takes everything that follows
	end     *entry // nothing follows
}

func build(routes []*entry) *tree {
	t := &tree{all: methods{}}
	each := func(e *entry, do func(methods)) {
		if len(e.route.Hosts) == 0 {
			do(t.all)
		}
		for _, h := range e.route.Hosts {
			if t.hosts == nil {
				t.hosts = map[string]methods{}
			}
			if t.hosts[h] == nil {
				t.hosts[h] = methods{}
			}
			do(t.hosts[h])
		}
	}
	for _, e := range routes {
		each(e, func(ms methods) {
			for _, m := range e.route.Methods {
				ms.tree(m).add(e)
			}
			if len(e.route.Methods) == 0 {
				ms.tree("").add(e)
			}
		})
	}
	// Where nothing else takes OPTIONS; in an order that does not depend on
	// when they were added.
	for _, e := range slices.SortedFunc(slices.Values(routes), func(a, b *entry) int { return strings.Compare(a.owner, b.owner) }) {
		if e.route.Preflight {
			each(e, func(ms methods) { ms.tree(http.MethodOptions).add(e) })
		}
	}
	return t
}

func (ms methods) tree(method string) *methodTree {
	mt := ms[method]
	if mt == nil {
		mt = &methodTree{exact: map[string]*entry{}}
		ms[method] = mt
	}
	return mt
}

// add makes e the route of its path, unless there is one.
func (mt *methodTree) add(e *entry) {
	n := &mt.root
	for _, s := range e.segs {
		switch {
		case s.Rest:
			if n.rest == nil {
				n.rest = e
			}
			return
		case s.Wild:
			if n.wild == nil {
				n.wild = &node{}
			}
			n = n.wild
		default:
			next := n.literal[s.Text]
			if next == nil {
				if n.literal == nil {
					n.literal = map[string]*node{}
				}
				next = &node{}
				n.literal[s.Text] = next
			}
			n = next
		}
	}
	if n.end != nil {
		return
	}
	n.end = e
	if len(e.names) == 0 {
		mt.exact[strings.TrimSuffix(e.route.Path, "{$}")] = e
	}
}

// lookup returns the route of a request and appends the values of its
// wildcards to values.
func (t *tree) lookup(r *http.Request, values []string) (*entry, []string) {
	if len(t.hosts) > 0 {
		if e, v := t.hosts[hostOf(r)].lookup(r, values); e != nil {
			return e, v
		}
	}
	return t.all.lookup(r, values)
}

// hostOf is the host a request names, in small letters and without its port.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

func (ms methods) lookup(r *http.Request, values []string) (*entry, []string) {
	if e, v := ms[r.Method].lookup(r.URL, values); e != nil {
		if r.Method == http.MethodOptions && e.route.Preflight {
			// Of the routes of one path, that of the method it is about.
			if asked, _ := ms[r.Header.Get("Access-Control-Request-Method")].lookup(r.URL, values); asked != nil && asked.route.Preflight {
				return asked, nil
			}
			return e, nil
		}
		return e, v
	}
	if r.Method == http.MethodHead {
		if e, v := ms[http.MethodGet].lookup(r.URL, values); e != nil {
			return e, v
		}
	}
	return ms[""].lookup(r.URL, values)
}

func (mt *methodTree) lookup(u *url.URL, values []string) (*entry, []string) {
	if mt == nil {
		return nil, nil
	}
	// RawPath is set when the path has escapes that matter, such as %2F.
	if u.RawPath == "" {
		if e := mt.exact[u.Path]; e != nil {
			return e, nil
		}
	}
	if !clean(u.Path) {
		return nil, nil
	}
	if u.RawPath == "" {
		return mt.root.match(u.Path[1:], false, values)
	}
	return mt.root.match(u.EscapedPath()[1:], true, values)
}

// match finds the most specific route for what remains of a path. A tree has
// one node per prefix, so no node is visited twice.
func (n *node) match(path string, escaped bool, values []string) (*entry, []string) {
	seg, tail, more := strings.Cut(path, "/")
	if escaped {
		var err error
		if seg, err = url.PathUnescape(seg); err != nil {
			return nil, nil
		}
	}
	if next := n.literal[seg]; next != nil {
		if e, v := next.follow(tail, more, escaped, values); e != nil {
			return e, v
		}
	}
	if n.wild != nil && seg != "" {
		if e, v := n.wild.follow(tail, more, escaped, append(values, seg)); e != nil {
			return e, v
		}
	}
	if n.rest == nil {
		return nil, nil
	}
	if escaped {
		var err error
		if path, err = url.PathUnescape(path); err != nil {
			return nil, nil
		}
	}
	return n.rest, append(values, path)
}

func (n *node) follow(tail string, more, escaped bool, values []string) (*entry, []string) {
	if more {
		return n.match(tail, escaped, values)
	}
	return n.end, values
}

// clean reports whether a path is absolute and has no empty or dot segments,
// apart from a final slash.
func clean(path string) bool {
	if path == "" || path[0] != '/' {
		return false
	}
	for rest, more := path[1:], true; more; {
		var seg string
		seg, rest, more = strings.Cut(rest, "/")
		if seg == "" && more || seg == "." || seg == ".." {
			return false
		}
	}
	return true
}

// allowed returns the methods that the path takes, sorted.
func (t *tree) allowed(r *http.Request) []string {
	found := map[string]bool{}
	for _, ms := range []methods{t.all, t.hosts[hostOf(r)]} {
		for m, mt := range ms {
			if e, _ := mt.lookup(r.URL, nil); e != nil {
				found[m] = true
				if m == http.MethodGet {
					found[http.MethodHead] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}
