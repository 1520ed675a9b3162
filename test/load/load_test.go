package load_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/test/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConnAgainstNetHTTP posts to the standard server: many on one connection,
// short and chunked answers, an empty one.
func TestConnAgainstNetHTTP(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/echo":
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, r.Header.Get("X-Id")+":"+string(b))
		case "/chunked":
			io.WriteString(w, "one ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "two")
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer srv.Close()
	c, err := load.Dial(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		for _, want := range []struct {
			path   string
			status int
			answer string
		}{
			{"/echo", 202, "7:hello"},
			{"/chunked", 200, "one two"},
			{"/empty", 204, ""},
		} {
			status, answer, err := c.Post(want.path, "X-Id: 7\r\n", []byte("hello"))
			if err != nil || status != want.status || string(answer) != want.answer {
				t.Fatalf("%s: %d %q %v", want.path, status, answer, err)
			}
		}
	}
	srv.Close()
	if _, _, err := c.Post("/echo", "", nil); err == nil {
		t.Fatal("a closed server gave no error")
	}
}

// TestSinkFromNetHTTP posts with the standard client, with a length and
// without one.
func TestSinkFromNetHTTP(t *testing.T) {
	s, err := load.Listen(func(r load.Request) (int, string) {
		return http.StatusTeapot, r.Path() + " " + r.Header("x-ID") + " " + r.Header("Absent") + string(r.Body())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, body := range []io.Reader{strings.NewReader("body"), io.MultiReader(strings.NewReader("bo"), strings.NewReader("dy"))} {
		for range 2 {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr()+"/in?a=b", body)
			req.Header.Set("X-Id", "9")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusTeapot || string(b) != "/in?a=b 9 body" {
				t.Fatalf("%d %q", resp.StatusCode, b)
			}
			body = strings.NewReader("body")
		}
	}
}

func BenchmarkPost(b *testing.B) {
	s, err := load.Listen(func(load.Request) (int, string) { return 200, "" })
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c, err := load.Dial(s.Addr())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	body := []byte(strings.Repeat("x", 256))
	for b.Loop() {
		if _, _, err := c.Post("/", "", body); err != nil {
			b.Fatal(err)
		}
	}
}
