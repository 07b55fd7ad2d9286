package rotation

import (
	"context"
	"errors"
	"fmt"

	"credentialbroker/providers"
)

// StillTaken asks the issuer once, within the budget of failed
// authentications, whether it still takes version v, which serves no more: an
// issuer that has revoked it says no, and that counts as one failure. A version
// that it has refused before is not asked about again. It cannot be told where
// nothing but an API key, a refresh token or a signature of our own would show
// it. Errors are of type *Error, of the provider, or ctx's.
func (c *Credential) StillTaken(ctx context.Context, v providers.Version) (bool, error) {
	if c.deps.Issuer == nil || c.deps.Issuer.Local() || c.login != nil {
		return false, &Error{Kind: RequestRefused, Detail: "no request to this issuer shows whether it takes an older version"}
	}
	if live := c.Current(); live != nil && live.Version == v {
		return false, &Error{Kind: RequestRefused, Detail: fmt.Sprintf("version %s is the one that serves", v)}
	}
	if c.refused(c.id(v)) {
		return false, nil
	}
	b, err := c.Older(ctx, v)
	if err != nil {
		return false, err
	}
	defer b.Wipe()
	if err := c.ledger.minting.take(ctx); err != nil {
		return false, err
	}
	defer c.ledger.minting.give()
	// A trial: its refusal is what is hoped for, and no alarm.
	t, err := c.attempt(ctx, &Live{Version: v, Fields: b.Fields, id: c.id(v), trial: true}, c.cfg.Default)
	var e *Error
	switch {
	case err == nil:
		t.Access.Wipe()
		return true, nil
	case errors.As(err, &e) && e.fresh:
		return false, nil
	}
	return false, err
}

// Older reads version v from the secrets manager, if that has it still. The
// bundle is the caller's to wipe.
func (c *Credential) Older(ctx context.Context, v providers.Version) (providers.Bundle, error) {
	b, err := c.at(ctx, v)
	if err != nil {
		return providers.Bundle{}, err
	}
	if b.Version != v {
		b.Wipe()
		return providers.Bundle{}, &Error{Kind: RequestRefused, Detail: fmt.Sprintf("the secrets manager has version %s no more: it gave %s for it", v, b.Version)}
	}
	return b, nil
}
