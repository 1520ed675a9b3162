package http

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// client is the credentials of a client.
type client struct {
	triggers.Values
	secret *atomic.Value
}

func (c client) TextOrSecret(t specs.TextOrSecret) (string, error) { return t.Text.Value, nil }
func (c client) Secret(specs.SecretRef) (string, error)            { return c.secret.Load().(string), nil }

// login is a token server and the service that wants its tokens.
type login struct {
	*httptest.Server
	mu      sync.Mutex
	answer  func(w http.ResponseWriter, r *http.Request) // of the token server, unless nil
	expires int
	tokens  int             // given out
	good    map[string]bool // are taken
	calls   int
	last    string // parameters and credentials
}

func newLogin(t *testing.T) *login {
	l := &login{expires: 3600, good: map[string]bool{}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if r.URL.Path == "/token" {
			_ = r.ParseForm()
			user, pass, _ := r.BasicAuth()
			l.last = fmt.Sprintf("%s %s:%s", r.PostForm.Encode(), user, pass)
			if l.answer != nil {
				l.answer(w, r)
				return
			}
			l.tokens++
			token := fmt.Sprintf("t%d", l.tokens)
			l.good[token] = true
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":%d}`, token, l.expires)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		l.calls++
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); !ok || !l.good[token] {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(l.Close)
	return l
}

// state is how many tokens and calls there were.
func (l *login) state() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d tokens, %d calls", l.tokens, l.calls)
}

func (l *login) set(do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	do()
}

func TestOAuth2(t *testing.T) { paths(t, testOAuth2) }

func testOAuth2(t *testing.T, newTest maker) {
	l := newLogin(t)
	var pass atomic.Value
	pass.Store("s3 cret")
	values := client{secret: &pass}
	f := newTest(t, &Config{URL: text(l.URL), OAuth2: &OAuth2{
		TokenURL: l.URL + "/token", ClientID: text("me"), Scopes: []string{"a", "b"}, Params: map[string]string{"audience": "x"},
	}}, 4)
	invoke := func() error {
		_, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: values})
		return err
	}
	step := func(what, want string) {
		t.Helper()
		if err := invoke(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := l.state(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	step("the first call", "1 tokens, 1 calls")
	if want := "audience=x&grant_type=client_credentials&scope=a+b me:s3+cret"; l.last != want {
		t.Errorf("%s, want %s", l.last, want)
	}
	step("the second", "1 tokens, 2 calls")
	l.set(func() { clear(l.good) })
	step("revoked", "2 tokens, 4 calls")
	pass.Store("another")
	step("other credentials", "3 tokens, 5 calls")
	l.set(func() { l.expires = 5 }) // less than what is left in reserve
	pass.Store("third")
	step("short-lived", "4 tokens, 6 calls")
	step("expired", "5 tokens, 7 calls")
	l.set(func() { l.expires = 3600 })
	step("again", "6 tokens, 8 calls")

	var wg sync.WaitGroup
	l.set(func() { clear(l.good) })
	for range 8 {
		wg.Go(func() {
			if err := invoke(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l.tokens != 7 {
		t.Errorf("%d tokens for concurrent calls, want one more", l.tokens)
	}

	// One that is never taken is asked for once more, not for ever.
	f = newTest(t, &Config{URL: text(l.URL), OAuth2: &OAuth2{TokenURL: l.URL + "/token", ClientID: text("me"), Credentials: credentialsBody}}, 1)
	l.set(func() { l.good = map[string]bool{}; l.calls, l.tokens = 0, 100 })
	l.set(func() {
		l.answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"bad"}`)
		}
	})
	if err := invoke(); err == nil || sort(err) != "permanent" || l.calls != 1 {
		t.Errorf("%v after %d calls", err, l.calls)
	}
	if err := invoke(); err == nil || sort(err) != "permanent" || l.calls != 3 {
		t.Errorf("%v after %d calls", err, l.calls)
	}
	if want := "client_id=me&client_secret=third&grant_type=client_credentials :"; l.last != want {
		t.Errorf("%s, want %s", l.last, want)
	}
}

func TestOAuth2Failures(t *testing.T) {
	l := newLogin(t)
	var pass atomic.Value
	pass.Store("canary")
	for name, tc := range map[string]struct {
		answer     func(w http.ResponseWriter, r *http.Request)
		want, sort string
	}{
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"canary"}`)
		}, `refused with 401 Unauthorized ("invalid_client")`, "permanent"},
		"down": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "canary")
		}, "refused with 503 Service Unavailable", "after 3s"},
		"html": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<b>canary")
		}, "the answer is none", "retry"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "refused with 302 Found", "permanent"},
		"control":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"access_token":"a\r\nb"}`) }, "", "retry"},
		"slow":     {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "context deadline exceeded", "retry"},
	} {
		t.Run(name, func(t *testing.T) {
			l.set(func() { l.answer = tc.answer })
			f := newTest(t, &Config{URL: text(l.URL), OAuth2: &OAuth2{TokenURL: l.URL + "/token", ClientID: text("me")}}, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if name == "slow" {
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			}
			defer cancel()
			_, err := f.Invoke(ctx, &triggers.Call{Event: event(), Values: client{secret: &pass}})
			if err == nil || !strings.Contains(err.Error(), tc.want) || sort(err) != tc.sort || strings.Contains(err.Error(), "canary") {
				t.Errorf("%v (%s)", err, sort(err))
			}
		})
	}
	if l.calls != 0 {
		t.Errorf("%d calls without a token", l.calls)
	}
}
