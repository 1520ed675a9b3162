// Package load owns the cheap ends of the tests and benchmarks: an HTTP/1.1
// client on one kept-alive connection ([Conn]) and a server that takes posts
// ([Sink]). Both parse just what they need by hand, so that on a shared machine
// the time goes to what is measured and not to the generator. Not for use
// outside test.
package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"
)

// Timeout bounds one request on a [Conn], the answer included.
const Timeout = 30 * time.Second

// maxBody bounds the body of a message.
const maxBody = 64 << 20

// Conn is one kept-alive connection to an HTTP/1.1 server. After an error it
// is of no more use; close it and dial again. It is not safe for concurrent use.
type Conn struct {
	nc  net.Conn
	br  *bufio.Reader
	out []byte
	in  message
}

// Dial connects to addr, a host and port.
func Dial(addr string) (*Conn, error) {
	nc, err := net.DialTimeout("tcp", addr, Timeout)
	if err != nil {
		return nil, err
	}
	return &Conn{nc: nc, br: bufio.NewReader(nc)}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.nc.Close() }

// Post sends body to path and returns the status and the body of the answer,
// which is valid until the next call. header holds complete header lines, each
// ending in CRLF. An error leaves open whether the server took the request.
func (c *Conn) Post(path, header string, body []byte) (status int, answer []byte, err error) {
	c.out = append(c.out[:0], "POST "...)
	c.out = append(c.out, path...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: localhost\r\n"...)
	c.out = append(c.out, header...)
	c.out = append(c.out, "Content-Length: "...)
	c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	c.out = append(c.out, body...)
	if err := c.nc.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return 0, nil, err
	}
	if _, err := c.nc.Write(c.out); err != nil {
		return 0, nil, err
	}
	for {
		if err := c.in.read(c.br); err != nil {
			return 0, nil, err
		}
		if status, err = c.in.status(); err != nil {
			return 0, nil, err
		}
		if status >= 200 {
			return status, c.in.body, nil
		}
	}
}

// Request is one post that reached a [Sink]. It is valid until the handler
// returns.
type Request struct {
	m *message
}

// Body is the body.
func (r Request) Body() []byte { return r.m.body }

// Header returns the value of a header, whose name may be of any case, or "".
func (r Request) Header(name string) string { return string(r.m.header(name)) }

// Path is the target of the request, query included.
func (r Request) Path() string {
	_, rest, _ := bytes.Cut(r.m.head, []byte(" "))
	path, _, _ := bytes.Cut(rest, []byte(" "))
	return string(path)
}

// Sink is an HTTP/1.1 server for posts.
type Sink struct {
	ln     net.Listener
	handle func(Request) (status int, answer string)
	mu     sync.Mutex
	conns  map[net.Conn]struct{} // nil once closed
	wg     sync.WaitGroup
}

// Listen starts a sink on a free port of the loopback address. handle is
// called from many goroutines.
func Listen(handle func(Request) (status int, answer string)) (*Sink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Sink{ln: ln, handle: handle, conns: make(map[net.Conn]struct{})}
	s.wg.Go(s.accept)
	return s, nil
}

// Addr is the host and port it listens on.
func (s *Sink) Addr() string { return s.ln.Addr().String() }

// Close ends all connections and waits for the handlers.
func (s *Sink) Close() error {
	err := s.ln.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func (s *Sink) accept() {
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		s.mu.Lock()
		if s.conns == nil {
			c.Close()
		} else {
			s.conns[c] = struct{}{}
			s.wg.Go(func() { s.serve(c) })
		}
		s.mu.Unlock()
	}
}

func (s *Sink) serve(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	br := bufio.NewReader(c)
	var m message
	var out []byte
	for m.read(br) == nil {
		status, answer := s.handle(Request{&m})
		out = append(out[:0], "HTTP/1.1 "...)
		out = strconv.AppendInt(out, int64(status), 10)
		out = append(out, " .\r\nContent-Length: "...)
		out = strconv.AppendInt(out, int64(len(answer)), 10)
		out = append(out, "\r\n\r\n"...)
		out = append(out, answer...)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// message is an HTTP/1.1 request or response; its memory is used again by the
// next one.
type message struct {
	head []byte // start line and header lines, each ending in LF
	body []byte
}

var (
	hdrLength   = []byte("content-length:")
	hdrEncoding = []byte("transfer-encoding:")
)

func (m *message) read(br *bufio.Reader) error {
	m.head, m.body = m.head[:0], m.body[:0]
	length, chunked := 0, false
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		m.head = append(m.head, line...)
		if v, ok := cutFold(line, hdrLength); ok {
			if length, err = strconv.Atoi(string(v)); err != nil || length < 0 || length > maxBody {
				return fmt.Errorf("content-length %q is not from 0 to %d", v, maxBody)
			}
		} else if v, ok := cutFold(line, hdrEncoding); ok {
			chunked = string(v) == "chunked"
		}
	}
	if chunked {
		b, err := io.ReadAll(io.LimitReader(httputil.NewChunkedReader(br), maxBody))
		m.body = append(m.body, b...)
		if err != nil {
			return err
		}
		_, err = br.ReadSlice('\n') // the line after the last chunk
		return err
	}
	if cap(m.body) < length {
		m.body = make([]byte, 0, length)
	}
	m.body = m.body[:length]
	_, err := io.ReadFull(br, m.body)
	return err
}

// cutFold returns the trimmed rest of line after prefix, which is in lower
// case, whatever the case of line.
func cutFold(line, prefix []byte) ([]byte, bool) {
	if len(line) < len(prefix) || !bytes.EqualFold(line[:len(prefix)], prefix) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(prefix):]), true
}

func (m *message) header(name string) []byte {
	prefix := []byte(name + ":")
	for line := range bytes.Lines(m.head) {
		if v, ok := cutFold(line, prefix); ok {
			return v
		}
	}
	return nil
}

func (m *message) status() (int, error) {
	_, rest, _ := bytes.Cut(m.head, []byte(" "))
	if len(rest) >= 3 {
		if n, err := strconv.Atoi(string(rest[:3])); err == nil {
			return n, nil
		}
	}
	line, _, _ := bytes.Cut(m.head, []byte("\n"))
	return 0, fmt.Errorf("no HTTP status line: %q", line)
}
