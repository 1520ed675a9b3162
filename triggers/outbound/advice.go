package outbound

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"syscall"
)

// Advised adds to the error of a connection what to do about it, where that is
// known. The error is in it.
func Advised(err error) error {
	if advice := advice(err); advice != "" {
		return &advised{err, advice}
	}
	return err
}

type advised struct {
	error
	advice string
}

func (e *advised) Error() string { return e.error.Error() + "; " + e.advice }
func (e *advised) Unwrap() error { return e.error }

func advice(err error) string {
	var (
		dns    *net.DNSError
		record tls.RecordHeaderError
		ca     x509.UnknownAuthorityError
		name   x509.HostnameError
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "start what should answer there, or check the address"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "check the name of the host"
	case errors.As(err, &record):
		return "it speaks no TLS there"
	case errors.As(err, &ca):
		return "nobody who is trusted vouches for its certificate: put the authority into tls.ca"
	case errors.As(err, &name):
		return "put the name in its certificate into tls.serverName"
	}
	return ""
}
