package http

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sensor-engine/engine/triggers/outbound"
)

// A pool makes exchanges over plain HTTP/1.1 on the goroutine of the caller.
// net/http's transport passes each one through two goroutines of the
// connection, which costs several times the exchange itself when the callee is
// near. Parsing answers is left to net/http.
type pool struct {
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	maxIdle int

	mu     sync.Mutex
	idle   map[string][]*conn // by address, the newest last
	timer  *time.Timer        // set while connections are idle
	closed bool
}

const (
	// idleTimeout is how long a connection waits for its next use.
	idleTimeout = outbound.IdleTimeout
	// maxAnswerHeader is the most of an answer before its body, in bytes.
	maxAnswerHeader = 1 << 20
)

var errHeaderTooLarge = errors.New("the header of the answer is too large")

// conn is one connection. It belongs to one call, or to the pool while idle.
type conn struct {
	net.Conn
	addr   string
	buf    *bufio.Reader
	budget int64 // what may still be read
	since  time.Time
	// interrupt ends what is being read or written; stop calls it off.
	interrupt func()
	stop      func() bool
}

// Read implements io.Reader for buf, within the budget.
func (c *conn) Read(p []byte) (int, error) {
	if c.budget <= 0 {
		return 0, errHeaderTooLarge
	}
	n, err := c.Conn.Read(p)
	c.budget -= int64(n)
	return n, err
}

// exchange sends a request and reads the answer up to its body. The caller
// must hand the connection to release when it has read the body.
func (p *pool) exchange(ctx context.Context, addr string, request []byte, method *http.Request) (*http.Response, *conn, error) {
	for {
		c, reused, err := p.get(ctx, addr)
		if err != nil {
			return nil, nil, err
		}
		c.stop = context.AfterFunc(ctx, c.interrupt)
		resp, silent, err := c.exchange(request, method)
		if err == nil {
			return resp, c, nil
		}
		p.release(c, false)
		// A server may close an idle connection just when it is used. The
		// idempotency key makes it safe to repeat the request.
		if !reused || !silent || ctx.Err() != nil {
			return nil, nil, err
		}
	}
}

// exchange is one attempt; silent tells that not one byte came back.
func (c *conn) exchange(request []byte, method *http.Request) (resp *http.Response, silent bool, err error) {
	if _, err := c.Write(request); err != nil {
		return nil, true, err
	}
	c.budget = maxAnswerHeader
	if _, err := c.buf.Peek(1); err != nil {
		return nil, true, err
	}
	for {
		resp, err := http.ReadResponse(c.buf, method)
		if err != nil {
			return nil, false, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			c.budget = math.MaxInt64
			return resp, false, nil
		}
	}
}

// get returns an idle connection or makes a new one.
func (p *pool) get(ctx context.Context, addr string) (c *conn, reused bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	p.mu.Lock()
	if cs := p.idle[addr]; len(cs) > 0 {
		c = cs[len(cs)-1]
		cs[len(cs)-1] = nil
		p.idle[addr] = cs[:len(cs)-1]
	}
	p.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	nc, err := p.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, false, err
	}
	c = &conn{Conn: nc, addr: addr}
	c.buf = bufio.NewReader(c)
	c.interrupt = func() { _ = nc.SetDeadline(time.Unix(1, 0)) }
	return c, false, nil
}

// release takes a connection back; it is kept when it can be used again.
func (p *pool) release(c *conn, reusable bool) {
	// A connection that was interrupted has a deadline in the past.
	if !c.stop() || !reusable || c.buf.Buffered() > 0 {
		_ = c.Close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[c.addr]) >= p.maxIdle {
		_ = c.Close()
		return
	}
	c.since = time.Now()
	p.idle[c.addr] = append(p.idle[c.addr], c)
	if p.timer == nil {
		p.timer = time.AfterFunc(idleTimeout, p.sweep)
	}
}

// sweep closes the connections that were idle for too long.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	for addr, cs := range p.idle {
		n := 0
		for n < len(cs) && time.Since(cs[n].since) >= idleTimeout {
			_ = cs[n].Close()
			n++
		}
		if p.idle[addr] = append(cs[:0:0], cs[n:]...); n == len(cs) {
			delete(p.idle, addr)
		}
	}
	if len(p.idle) > 0 && !p.closed {
		p.timer = time.AfterFunc(idleTimeout, p.sweep)
	}
}

// close closes what is idle; connections in use are closed when released.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, cs := range p.idle {
		for _, c := range cs {
			_ = c.Close()
		}
	}
	p.idle = nil
}
