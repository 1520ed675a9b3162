package listen

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/sources"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func route(s string) sources.Route {
	methods, path, ok := strings.Cut(s, " ")
	if !ok {
		return sources.Route{Path: s}
	}
	return sources.Route{Methods: strings.Split(methods, ","), Path: path}
}

// named answers with its name and the values of the wildcards a, b and c.
func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s a=%s b=%s c=%s", name, r.PathValue("a"), r.PathValue("b"), r.PathValue("c"))
	})
}

func get(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func add(t testing.TB, table *Table, owner, r string, h http.Handler) func() {
	t.Helper()
	remove, err := table.Handle(owner, route(r), h)
	if err != nil {
		t.Fatal(err)
	}
	return remove
}

func TestLookup(t *testing.T) {
	table := &Table{}
	table.Open()
	for i, r := range []string{
		"POST /orders", "GET,PUT /orders", "/orders/{a}", "POST /orders/new", "/files/{a}/{c...}", "/files/x/{b}/y", "/tree/",
		"/end/{$}", "/ü/{a}", "GET /v/{a}/w", "POST /v/x/w",
	} {
		add(t, table, fmt.Sprint(i), r, named(r))
	}
	for _, tt := range []struct {
		method, target string
		status         int
		want           string // the body, or Allow of a 405
	}{
		{"POST", "/orders", 200, "POST /orders a= b= c="},
		{"PUT", "/orders?x=1", 200, "GET,PUT /orders a= b= c="},
		{"HEAD", "/orders", 200, "GET,PUT /orders a= b= c="},
		{"DELETE", "/orders", 405, "GET, HEAD, POST, PUT"},
		{"POST", "/orders/", 404, ""},
		{"POST", "/orders/new", 200, "POST /orders/new a= b= c="},
		{"GET", "/orders/new", 200, "/orders/{a} a=new b= c="},
		{"GET", "/orders/a%2Fb", 200, "/orders/{a} a=a/b b= c="},
		{"GET", "/orders/%6Eew%21", 200, "/orders/{a} a=new! b= c="},
		{"POST", "/orders/n%65w", 200, "POST /orders/new a= b= c="},
		{"GET", "/files/x/z/y", 200, "/files/x/{b}/y a= b=z c="},
		{"GET", "/files/x/z/q", 200, "/files/{a}/{c...} a=x b= c=z/q"},
		{"GET", "/files/x/", 200, "/files/{a}/{c...} a=x b= c="},
		{"GET", "/files/x", 404, ""},
		{"GET", "/files//x", 404, ""},
		{"GET", "/files/x//y", 404, ""},
		{"GET", "/files/x/../y", 404, ""},
		{"GET", "/files/x/%2e%2e/y", 404, ""},
		{"GET", "/files/x/..%2fy", 404, ""},
		{"GET", "/files/x/a%2fb/c", 200, "/files/{a}/{c...} a=x b= c=a/b/c"},
		{"GET", "/tree/a/b", 200, "/tree/ a= b= c="},
		{"GET", "/tree", 404, ""},
		{"GET", "/end/", 200, "/end/{$} a= b= c="},
		{"GET", "/end/x", 404, ""},
		{"GET", "/%C3%BC/1", 200, "/ü/{a} a=1 b= c="},
		{"GET", "/v/x/w", 200, "GET /v/{a}/w a=x b= c="},
		{"POST", "/v/y/w", 405, "GET, HEAD"},
		{"GET", "/files/x/deep/down", 200, "/files/{a}/{c...} a=x b= c=deep/down"},
		{"GET", "/", 404, ""},
	} {
		w := get(table, tt.method, tt.target)
		got := w.Body.String()
		switch w.Code {
		case 404:
			got = ""
		case 405:
			got = w.Header().Get("Allow")
		}
		if w.Code != tt.status || got != tt.want {
			t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, got, tt.status, tt.want)
		}
	}
	r := httptest.NewRequest("OPTIONS", "/", nil)
	r.URL.Path = "*"
	w := httptest.NewRecorder()
	if table.ServeHTTP(w, r); w.Code != 404 {
		t.Errorf("OPTIONS * = %d, want 404", w.Code)
	}
}

func TestHosts(t *testing.T) {
	table := &Table{}
	table.Open()
	for owner, r := range map[string]sources.Route{
		"all": {Methods: []string{"GET", "POST"}, Path: "/x"}, "a": {Methods: []string{"POST"}, Path: "/x", Hosts: []string{"a.test"}},
		"only": {Methods: []string{"PUT"}, Path: "/y", Hosts: []string{"a.test"}},
	} {
		if _, err := table.Handle(owner, r, named(owner)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Handle("b", sources.Route{Path: "/x", Methods: []string{"POST"}, Hosts: []string{"b.test", "a.test"}}, named("b")); err == nil {
		t.Error("two routes of one host were taken")
	}
	for _, tt := range []struct {
		method, target string
		status         int
		want           string
	}{
		{"POST", "http://a.test/x", 200, "a"},
		{"POST", "http://A.TEST.:8080/x", 200, "a"},
		{"GET", "http://a.test/x", 200, "all"},
		{"POST", "http://127.0.0.1:80/x", 200, "all"},
		{"POST", "http://[::1]:80/x", 200, "all"},
		{"PUT", "http://a.test/y", 200, "only"},
		{"PUT", "http://b.test/y", 404, ""},
		{"DELETE", "http://a.test/y", 405, "PUT"},
	} {
		w := get(table, tt.method, tt.target)
		got, _, _ := strings.Cut(w.Body.String(), " ")
		if w.Code == 405 {
			got = w.Header().Get("Allow")
		}
		if w.Code != tt.status || tt.status != 404 && got != tt.want {
			t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, got, tt.status, tt.want)
		}
	}
}

// Routes of one path that answer preflights live together; each answers for
// its own methods.
func TestPreflight(t *testing.T) {
	table := &Table{}
	table.Open()
	for _, r := range []sources.Route{
		{Methods: []string{"GET"}, Path: "/x", Preflight: true},
		{Methods: []string{"POST"}, Path: "/x", Preflight: true},
		{Methods: []string{"PUT"}, Path: "/x"},
		{Methods: []string{"GET"}, Path: "/own/{a}", Preflight: true},
		{Methods: []string{"OPTIONS"}, Path: "/own/{a}"},
		{Path: "/"},
		{Methods: []string{"PUT"}, Path: "/none"},
	} {
		if _, err := table.Handle(describe(r), r, named(describe(r))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ asked, path, want string }{
		{"POST", "/x", "POST /x"},
		{"GET", "/x", "GET /x"},
		{"", "/x", "GET /x"},
		{"PUT", "/x", "GET /x"}, // which says that PUT may not
		{"GET", "/own/1", "OPTIONS /own/{a}"},
		{"PUT", "/none", "/"},
	} {
		r := httptest.NewRequest("OPTIONS", tt.path, nil)
		if tt.asked != "" {
			r.Header.Set("Access-Control-Request-Method", tt.asked)
		}
		w := httptest.NewRecorder()
		table.ServeHTTP(w, r)
		if got, _, _ := strings.Cut(w.Body.String(), " a="); got != tt.want {
			t.Errorf("OPTIONS %s for %q is answered by %q, want %q", tt.path, tt.asked, got, tt.want)
		}
	}
}

func TestConflict(t *testing.T) {
	table := &Table{}
	add(t, table, "EventSource/shop orders", "POST /orders/{a}", named("1"))
	_, err := table.Handle("EventSource/other x", route("POST,PUT /{b}/new"), named("2"))
	if _, ok := errors.AsType[*ConflictError](err); !ok {
		t.Fatalf("Handle = %v, want a conflict", err)
	}
	for _, part := range []string{"EventSource/shop orders", "EventSource/other x", "POST /orders/{a}", "POST,PUT /{b}/new"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %q", err, part)
		}
	}
	if _, err := table.Handle("x", route("orders"), named("3")); err == nil {
		t.Error("a path without a slash was taken")
	}
}

func TestReplaceAndRemove(t *testing.T) {
	table := &Table{}
	table.Open()
	removeOld := add(t, table, "o", "POST /x", named("old"))
	removeNew := add(t, table, "o", "POST,PUT /x", named("new"))
	removeOld()
	if w := get(table, "POST", "/x"); !strings.HasPrefix(w.Body.String(), "new") {
		t.Errorf("after a take-over: %d %s, want the new handler", w.Code, w.Body)
	}
	removeNew()
	removeNew()
	if w := get(table, "POST", "/x"); w.Code != 404 || len(table.Routes()) != 0 {
		t.Errorf("after the removal: %d, routes %v", w.Code, table.Routes())
	}
}

func TestNotOpen(t *testing.T) {
	table := &Table{}
	add(t, table, "o", "POST /x", named("x"))
	if w := get(table, "POST", "/y"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("before Open: %d, want 503 with Retry-After", w.Code)
	}
	if w := get(table, "POST", "/x"); w.Code != 200 {
		t.Errorf("a route that is there: %d, want 200", w.Code)
	}
	table.Open()
	if w := get(table, "POST", "/y"); w.Code != 404 {
		t.Errorf("after Open: %d, want 404", w.Code)
	}
}

func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &Table{Handover: time.Second}
		table.Open()
		remove := add(t, table, "o", "POST /x/{a}", named("old"))
		remove()
		results := make(chan *httptest.ResponseRecorder, 3)
		for range 3 {
			go func() { results <- get(table, "POST", "/x/1") }()
		}
		if w := get(table, "POST", "/y"); w.Code != 404 {
			t.Errorf("another path: %d, want 404 at once", w.Code)
		}
		time.Sleep(500 * time.Millisecond)
		add(t, table, "z", "/unrelated", named("unrelated"))
		synctest.Wait()
		remove = add(t, table, "o", "POST /x/{a}", named("new"))
		for range 3 {
			if w := <-results; w.Body.String() != "new a=1 b= c=" {
				t.Errorf("held request got %d %s, want the new handler", w.Code, w.Body)
			}
		}
		remove()
		start := time.Now()
		if w := get(table, "POST", "/x/1"); w.Code != 404 || time.Since(start) != time.Second {
			t.Errorf("a route that does not come back: %d after %v, want 404 after 1s", w.Code, time.Since(start))
		}
		start = time.Now()
		if w := get(table, "POST", "/x/1"); w.Code != 404 || time.Since(start) != 0 {
			t.Errorf("later: %d after %v, want 404 at once", w.Code, time.Since(start))
		}
	})
}

func TestPanicClosesConnection(t *testing.T) {
	var log bytes.Buffer
	table := &Table{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	add(t, table, "EventSource/shop orders", "/x", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
	s := httptest.NewServer(table)
	res, err := s.Client().Get(s.URL + "/x")
	if err == nil {
		res.Body.Close()
		t.Errorf("a panic was answered with %d", res.StatusCode)
	}
	s.Close() // waits for the handler
	if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "shop orders") {
		t.Errorf("log %q does not tell of the panic and its owner", log.String())
	}
}

// TestSwapUnderLoad replaces a route all the time; no request may fail.
func TestSwapUnderLoad(t *testing.T) {
	table := &Table{Handover: 5 * time.Second}
	table.Open()
	remove := add(t, table, "o", "POST /x/{a}", named("0"))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if w := get(table, "POST", "/x/1"); w.Code != 200 {
					t.Errorf("%d during a swap", w.Code)
					return
				}
			}
		})
	}
	for i := range 500 {
		remove()
		remove = add(t, table, "o", "POST /x/{a}", named(fmt.Sprint(i)))
	}
	close(stop)
	clients.Wait()
}

// TestLikeServeMux holds the table against net/http: the same conflicts, the
// same handler for each request.
func TestLikeServeMux(t *testing.T) {
	segment := rapid.SampledFrom([]string{"x", "y", "{1}", "{2}"})
	last := rapid.SampledFrom([]string{"x", "y", "{1}", "", "{$}", "{3...}"})
	pattern := rapid.Custom(func(t *rapid.T) sources.Route {
		parts := rapid.SliceOfN(segment, 0, 3).Draw(t, "segments")
		parts = append(parts, last.Draw(t, "last"))
		for i, p := range parts { // names must differ
			p = strings.NewReplacer("{1", fmt.Sprintf("{a%d", i), "{2", fmt.Sprintf("{b%d", i), "{3", "{c").Replace(p)
			parts[i] = p
		}
		methods := rapid.SampledFrom([][]string{nil, {"GET"}, {"POST"}, {"HEAD"}, {"GET", "POST"}}).Draw(t, "methods")
		hosts := rapid.SampledFrom([][]string{nil, nil, {"a.test"}, {"b.test"}, {"a.test", "b.test"}}).Draw(t, "hosts")
		return sources.Route{Methods: methods, Hosts: hosts, Path: "/" + strings.Join(parts, "/")}
	})
	target := rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"x", "y", "z", "x%2Fy", "%78"}), 0, 4).Draw(t, "parts")
		return "/" + strings.Join(parts, "/") + rapid.SampledFrom([]string{"", "/"}).Draw(t, "end")
	}).Filter(func(s string) bool { return !strings.Contains(s, "//") })

	rapid.Check(t, func(t *rapid.T) {
		table, mux := &Table{}, http.NewServeMux()
		table.Open()
		var taken []sources.Route
		for i, r := range rapid.SliceOfN(pattern, 1, 8).Draw(t, "routes") {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%d c=%s", i, r.PathValue("c")) })
			// A mux cannot take back half a route: try on a copy first.
			trial := http.NewServeMux()
			conflict := false
			for _, o := range append(taken, r) {
				conflict = conflict || register(trial, o, h)
			}
			_, err := table.Handle(fmt.Sprint(i), r, h)
			if (err != nil) != conflict {
				t.Fatalf("adding %s to %v: %v, ServeMux conflict: %v", describe(r), taken, err, conflict)
			}
			if !conflict {
				taken = append(taken, r)
				register(mux, r, h)
			}
		}
		for range 20 {
			method := rapid.SampledFrom([]string{"GET", "POST", "HEAD", "PUT"}).Draw(t, "method")
			path := target.Draw(t, "target")
			path = "http://" + rapid.SampledFrom([]string{"a.test", "b.test:8080", "c.test"}).Draw(t, "host") + path
			want, got := get(mux, method, path), get(table, method, path)
			if want.Code >= 300 && want.Code < 400 {
				continue // to the path with a slash, which the table does not do
			}
			if want.Code == 405 && got.Code != 200 && get(table, method, path+"/").Code != 404 {
				continue // ServeMux counts the methods it would redirect to the slash
			}
			if got.Code != want.Code || got.Header().Get("Allow") != want.Header().Get("Allow") ||
				want.Code == 200 && got.Body.String() != want.Body.String() {
				t.Fatalf("%s %s with %v: %d %s, ServeMux %d %s", method, path, taken, got.Code, got.Body, want.Code, want.Body)
			}
		}
	})
}

func register(mux *http.ServeMux, r sources.Route, h http.Handler) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	hosts := r.Hosts
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		if len(r.Methods) == 0 {
			mux.Handle(host+r.Path, h)
		}
		for _, m := range r.Methods {
			mux.Handle(m+" "+host+r.Path, h)
		}
	}
	return false
}

func FuzzServe(f *testing.F) {
	table := &Table{}
	table.Open()
	for i, r := range []string{"/orders/{a}", "POST /orders/new", "/files/{c...}", "/tree/"} {
		add(f, table, fmt.Sprint(i), r, named(r))
	}
	f.Add("GET", "/orders/%2F")
	f.Add("POST", "/files/../%zz")
	f.Fuzz(func(t *testing.T, method, path string) {
		r, err := http.NewRequest(method, "http://h"+path, nil)
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		table.ServeHTTP(w, r)
		if c := r.PathValue("c"); strings.Contains("/"+c+"/", "/../") {
			t.Errorf("%s leads outside: %s", path, c)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	table := &Table{}
	for i := range 1000 {
		p := fmt.Sprintf("POST /webhooks/source-%d", i)
		if i%2 == 1 {
			p += "/{a}/events"
		}
		add(b, table, fmt.Sprint(i), p, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	for name, path := range map[string]string{"exact": "/webhooks/source-500", "pattern": "/webhooks/source-501/x/events"} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest("POST", path, nil)
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				table.ServeHTTP(w, r)
			}
			if w.Code != 200 {
				b.Fatal(w.Code)
			}
		})
	}
	b.Run("add 1000", func(b *testing.B) {
		for b.Loop() {
			table := &Table{}
			for i := range 1000 {
				add(b, table, "o", fmt.Sprintf("POST /webhooks/source-%d/{a}", i), nil)
			}
			table.current()
		}
	})
}

// A request that comes while the engine starts is never told that its route
// does not exist.
func TestNoNotFoundAtTheStart(t *testing.T) {
	served := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	for range 2000 {
		var table Table
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					w := httptest.NewRecorder()
					table.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/in", nil))
					if w.Code == http.StatusNotFound {
						t.Error("404 while the engine starts")
					}
					if w.Code != http.StatusServiceUnavailable {
						return
					}
				}
			})
		}
		if _, err := table.Handle("s/e", sources.Route{Path: "/in"}, served); err != nil {
			t.Fatal(err)
		}
		table.Open()
		wg.Wait()
	}
}
