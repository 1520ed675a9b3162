package http

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

// newTransport makes the transport of one function: its connections are its
// own, so that a slow callee takes none from others.
func newTransport(c *TLS, env triggers.Env) (*http.Transport, error) {
	cfg, err := tlsConfig(c, env.Dir)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		// One idle connection per possible call, or every burst dials anew.
		MaxIdleConnsPerHost: max(env.Concurrency, 2),
		IdleConnTimeout:     90 * time.Second,
		// The output is kept as it came; no gzip bombs.
		DisableCompression: true,
	}, nil
}

func tlsConfig(c *TLS, dir string) (*tls.Config, error) {
	if c == nil {
		return nil, nil
	}
	cfg := &tls.Config{ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify, MinVersion: tls.VersionTLS12} //nolint:gosec // asked for by the spec
	if c.CA != "" {
		pem, err := os.ReadFile(path(dir, c.CA))
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no PEM certificate", c.CA)
		}
	}
	if c.Cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(path(dir, c.Cert), path(dir, c.Key))
			if err != nil {
				return nil, fmt.Errorf("tls.cert and tls.key: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Read for each handshake: short-lived certificates are replaced on disk.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

func path(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
