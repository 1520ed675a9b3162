package nats

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

const (
	connectTimeout = 5 * time.Second
	reconnectWait  = 250 * time.Millisecond
	// longest is how long a call takes that has no timeout.
	longest = 24 * time.Hour
)

// link is the connection to one server of functions with the same settings. It
// is made by the first call that needs it, and made again when it was closed.
type link struct {
	cfg    *Config
	label  string
	dir    string
	secret func(specs.SecretRef) (string, error)

	mu     sync.Mutex
	nc     *nats.Conn
	trying *attempt // being made, or nil
	closed bool
	// waiting are the calls that want to know what the server says of their
	// subject.
	waiting map[string]map[*waiter]bool
}

// attempt is a connection that is being made.
type attempt struct {
	done chan struct{}
	err  error // when done
}

type waiter struct{ cancel context.CancelCauseFunc }

// connected returns the connection. It waits for one, not beyond ctx.
func (l *link) connected(ctx context.Context) (*nats.Conn, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, triggers.Errorf(triggers.SystemError, "%s: the function was closed", l.label)
	}
	if l.nc != nil && !l.nc.IsClosed() {
		nc := l.nc
		l.mu.Unlock()
		if !nc.IsConnected() {
			return nil, triggers.Errorf(triggers.SystemError, "%s: the connection is lost; it is being made again", l.label)
		}
		return nc, nil
	}
	try := l.trying
	if try == nil {
		try = &attempt{done: make(chan struct{})}
		l.trying = try
		go l.connect(try)
	}
	l.mu.Unlock()
	select {
	case <-try.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: connecting: %w", l.label, ctx.Err())
	}
	if try.err != nil {
		return nil, try.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nc, nil
}

// connect makes the connection.
func (l *link) connect(try *attempt) {
	nc, err := l.dial()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trying = nil
	switch {
	case err != nil:
		try.err = err
	case l.closed:
		nc.Close()
		try.err = triggers.Errorf(triggers.SystemError, "%s: the function was closed", l.label)
	default:
		l.nc = nc
	}
	close(try.done)
}

func (l *link) dial() (*nats.Conn, error) {
	o := []nats.Option{
		nats.Name("sensor-engine"), nats.Timeout(connectTimeout), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		// While there is no connection, calls fail and are repeated: what is kept
		// here would be lost with the process.
		nats.ReconnectBufSize(-1),
		// Credentials may be replaced while the server refuses the old ones.
		nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { l.told(err) }),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { l.lost() }),
	}
	auth, err := l.auth()
	if err != nil {
		return nil, err
	}
	o = append(o, auth...)
	cfg, err := l.cfg.TLS.Config(l.dir, l.secret)
	if err != nil {
		return nil, err
	}
	if cfg != nil {
		o = append(o, nats.Secure(cfg))
	}
	nc, err := nats.Connect(l.cfg.URL, o...)
	switch {
	case err == nil:
		return nc, nil
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return nil, triggers.Errorf(triggers.SystemError, "%s: it refuses this client: %w; check auth", l.label, err)
	case errors.Is(err, nats.ErrNoServers):
		return nil, triggers.Errorf(triggers.SystemError, "%s: nothing answers there; start it, or check url", l.label)
	}
	return nil, triggers.Errorf(triggers.SystemError, "%s: cannot connect: %w", l.label, err)
}

// auth are the options for the way in which the client proves who it is.
// Secrets are read when they are wanted.
func (l *link) auth() ([]nats.Option, error) {
	a := l.cfg.Auth
	if a == nil {
		return nil, nil
	}
	read := func(ref specs.SecretRef) (string, error) {
		if l.secret == nil {
			return "", fmt.Errorf("secret %s, key %s: there are no secrets here", ref.Name, ref.Key)
		}
		return l.secret(ref)
	}
	// What cannot be read now is an error with its reason, which the handlers
	// below cannot give.
	for _, ref := range []*specs.SecretRef{a.User.Secret, a.Password, a.Token, a.NKey, a.Creds} {
		if ref != nil {
			if _, err := read(*ref); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case a.Token != nil:
		return []nats.Option{nats.TokenHandler(func() string {
			token, _ := read(*a.Token)
			return token
		})}, nil
	case a.NKey != nil:
		seed, err := read(*a.NKey)
		if err != nil {
			return nil, err
		}
		pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(seed)))
		if err != nil {
			return nil, triggers.Permanentf("auth.nkey: key %s of Secret %s is no seed of an nkey", a.NKey.Key, a.NKey.Name)
		}
		pub, err := pair.PublicKey()
		if err != nil {
			return nil, triggers.Permanentf("auth.nkey: %w", err)
		}
		return []nats.Option{nats.Nkey(pub, pair.Sign)}, nil
	case a.Creds != nil:
		content := func() ([]byte, error) {
			s, err := read(*a.Creds)
			return []byte(s), err
		}
		return []nats.Option{nats.UserJWT(func() (string, error) {
			b, err := content()
			if err != nil {
				return "", err
			}
			return nkeys.ParseDecoratedJWT(b)
		}, func(nonce []byte) ([]byte, error) {
			b, err := content()
			if err != nil {
				return nil, err
			}
			pair, err := nkeys.ParseDecoratedUserNKey(b)
			if err != nil {
				return nil, fmt.Errorf("auth.creds: key %s of Secret %s has no seed of a user", a.Creds.Key, a.Creds.Name)
			}
			defer pair.Wipe()
			return pair.Sign(nonce)
		})}, nil
	}
	return []nats.Option{nats.UserInfoHandler(func() (user, password string) {
		if user = a.User.Text.Value; a.User.Secret != nil {
			user, _ = read(*a.User.Secret)
			user = a.User.Prefix + user
		}
		if a.Password != nil {
			password, _ = read(*a.Password)
		}
		return user, password
	})}, nil
}

// watch returns a context that also ends when the server refuses a message to
// subject, which it tells apart from the message, or the connection is lost. The
// caller calls done.
func (l *link) watch(ctx context.Context, subject string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() {}
	if _, ok := ctx.Deadline(); !ok { // the library wants one
		ctx, stop = context.WithTimeout(ctx, longest)
	}
	w := &waiter{cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[subject] == nil {
		l.waiting[subject] = map[*waiter]bool{}
	}
	l.waiting[subject][w] = true
	return ctx, func() {
		stop()
		cancel(nil)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting[subject], w)
		if len(l.waiting[subject]) == 0 {
			delete(l.waiting, subject)
		}
	}
}

// told ends the calls that an error of the connection is about.
func (l *link) told(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for subject, waiters := range l.waiting {
		if violates(err, subject) {
			for w := range waiters {
				w.cancel(err)
			}
		}
	}
}

// errLost says that the connection went away while a call waited: what it waits
// for would not come over the next one.
var errLost = errors.New("the connection was lost while the call waited")

// lost ends the calls that wait.
func (l *link) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, waiters := range l.waiting {
		for w := range waiters {
			w.cancel(errLost)
		}
	}
}

// close closes the connection and waits until one that is being made is given
// up, at most connectTimeout.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	nc, try := l.nc, l.trying
	l.mu.Unlock()
	if nc != nil {
		nc.Close()
	}
	if try != nil {
		<-try.done
	}
}

// id tells whether two configs prove the same in the same way.
func (a *Auth) id() string {
	if a == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q", a.User.Text.Value, a.User.Prefix)
	for _, ref := range []*specs.SecretRef{a.User.Secret, a.Password, a.Token, a.NKey, a.Creds} {
		if ref == nil {
			b.WriteString(" -")
			continue
		}
		fmt.Fprintf(&b, " %q/%q", ref.Name, ref.Key)
	}
	return b.String()
}

// label names the servers without what belongs to nobody's eyes.
func label(servers string) string {
	var names []string
	for s := range strings.SplitSeq(servers, ",") {
		s = strings.TrimSpace(s)
		if u, err := url.Parse(s); err == nil && u.Host != "" {
			s = u.Host
		} else if _, after, found := strings.Cut(s, "@"); found {
			s = after
		}
		names = append(names, s)
	}
	return strings.Join(names, ",")
}
