package listen

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, h http.HandlerFunc, o Options) *Server {
	t.Helper()
	s, err := Listen(t.Context(), "127.0.0.1:0", h, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return s
}

func TestAddressInUse(t *testing.T) {
	s := serve(t, nil, Options{})
	_, err := Listen(t.Context(), s.Addr(), nil, Options{Flag: "--listen"})
	if err == nil {
		t.Fatal("two servers on one address")
	}
	for _, part := range []string{s.Addr(), "in use", "--listen"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if _, err := Listen(t.Context(), "192.0.2.1:0", nil, Options{}); err == nil || !strings.Contains(err.Error(), "does not have") {
		t.Errorf("an address of another machine: %v", err)
	}
}

// exchange sends text on a connection of its own and returns all that comes back.
func exchange(t *testing.T, s *Server, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil && strings.Contains(err.Error(), "timeout") {
		t.Fatalf("the connection was not closed: %v", err)
	}
	return string(out)
}

func TestSlowAndLargeRequests(t *testing.T) {
	readErr := make(chan error, 1)
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		readErr <- err
	}, Options{HeaderTimeout: 50 * time.Millisecond, ReadTimeout: 200 * time.Millisecond, MaxHeaderBytes: 1 << 10})
	if out := exchange(t, s, "POST / HTTP/1.1\r\nHost: x\r\nX: "); strings.Contains(out, "200") {
		t.Errorf("half a request got %q", out)
	}
	exchange(t, s, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
	if err := <-readErr; err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("reading a body that does not come: %v, want a timeout", err)
	}
	if out := exchange(t, s, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 10<<10)+"\r\n\r\n"); !strings.Contains(out, "431") {
		t.Errorf("large headers got %q, want 431", out)
	}
	if out := exchange(t, s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); out != "" && !strings.HasPrefix(out, "HTTP/1.1 ") {
		t.Errorf("cleartext HTTP/2 got %q", out)
	}
}

func TestShutdown(t *testing.T) {
	entered, leave := make(chan bool), make(chan bool)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		entered <- true
		<-leave
		fmt.Fprint(w, "done")
	}, Options{})
	body := make(chan string)
	go func() {
		res, err := http.Get("http://" + s.Addr())
		if err != nil {
			body <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		body <- string(b)
	}()
	<-entered
	end := make(chan error)
	go func() { end <- s.Shutdown(t.Context()) }()
	<-s.Done()
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("still accepts connections")
	}
	close(leave)
	if b, err := <-body, <-end; b != "done" || err != nil || s.Err() != nil {
		t.Errorf("request %q, Shutdown %v, Err %v; want done, nil, nil", b, err, s.Err())
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestShutdownCutsOff(t *testing.T) {
	entered := make(chan bool, 1)
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		entered <- true
		<-r.Context().Done()
	}, Options{})
	go func() {
		if res, err := http.Get("http://" + s.Addr()); err == nil {
			res.Body.Close()
		}
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil {
		t.Error("Shutdown = nil although a request was cut off")
	}
	http.DefaultClient.CloseIdleConnections()
}
