package http

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// tokens keeps the token of one function. It is safe for concurrent use.
type tokens struct {
	cfg *OAuth2
	// turn holds a token while somebody looks after the fields below: calls
	// that need a new one wait for it, and not longer than their time.
	turn chan struct{}
	// token belongs to the credentials, which may be exchanged.
	token  *oauth2.Token
	id     string
	secret string
}

// get returns the value of the Authorization header, and whether it was made
// just now. refused is one that the callee does not take any more.
func (t *tokens) get(ctx context.Context, values triggers.Values, transport http.RoundTripper, refused string) (header string, fresh bool, err error) {
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", false, fmt.Errorf("waiting for a token of %s: %w", t.host(), ctx.Err())
	}
	id, err := values.TextOrSecret(t.cfg.ClientID)
	if err != nil {
		return "", false, err
	}
	secret, err := values.Secret(t.cfg.ClientSecret)
	if err != nil {
		return "", false, err
	}
	if t.token.Valid() && t.id == id && t.secret == secret && authorization(t.token) != refused {
		return authorization(t.token), false, nil
	}
	t.token = nil
	token, err := t.fetch(ctx, id, secret, transport)
	if err != nil {
		return "", false, err
	}
	header = authorization(token)
	if !validValue(header) {
		return "", false, fmt.Errorf("%s gave a token with control characters", t.host())
	}
	t.token, t.id, t.secret = token, id, secret
	return header, true, nil
}

func authorization(t *oauth2.Token) string { return t.Type() + " " + t.AccessToken }

func (t *tokens) host() string {
	if u, err := url.Parse(t.cfg.TokenURL); err == nil {
		return u.Scheme + "://" + u.Host
	}
	return "the token server"
}

// fetch asks for a token. Its errors do not repeat what the server says but
// its code, which is not free text.
func (t *tokens) fetch(ctx context.Context, id, secret string, transport http.RoundTripper) (*oauth2.Token, error) {
	cfg := clientcredentials.Config{
		ClientID: id, ClientSecret: secret, TokenURL: t.cfg.TokenURL, Scopes: t.cfg.Scopes,
		EndpointParams: url.Values{}, AuthStyle: oauth2.AuthStyleInHeader,
	}
	for k, v := range t.cfg.Params {
		cfg.EndpointParams.Set(k, v)
	}
	if t.cfg.Credentials == credentialsBody {
		cfg.AuthStyle = oauth2.AuthStyleInParams
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	token, err := cfg.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	if err == nil {
		return token, nil
	}
	refused, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			return nil, fmt.Errorf("token of %s: %w", t.host(), outbound.Cause(ctx, ue.Err))
		}
		return nil, fmt.Errorf("token of %s: the answer is none", t.host())
	}
	why := outbound.StatusText(refused.Response.StatusCode)
	if refused.ErrorCode != "" {
		why += " (" + strconv.QuoteToASCII(refused.ErrorCode) + ")"
	}
	err = fmt.Errorf("token of %s: refused with %s", t.host(), why)
	if !outbound.Worthwhile(refused.Response.StatusCode) {
		return nil, &triggers.PermanentError{Err: err}
	}
	return nil, outbound.Later(err, refused.Response.Header)
}
