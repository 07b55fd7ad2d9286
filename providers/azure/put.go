package azure

import (
	"context"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Put implements providers.Writer. Key Vault has no compare-and-set: the
// versions are listed before and after, and a version that is neither old nor
// ours is another writer's. The secret is then at the version written last,
// and both are kept. It needs the permissions get, list and set.
func (p *provider) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if err := checkRef(ref); err != nil {
		return "", err
	}
	if ref.Version != "" {
		return "", &providers.Error{Kind: providers.Unsupported, Provider: name, Ref: ref, Message: "a pinned version cannot be replaced"}
	}
	text, contentType, err := encode(fields)
	if err != nil {
		return "", withRef(err, ref)
	}
	before, err := p.versions(ctx, ref)
	if err != nil && providers.KindOf(err) != providers.NotFound {
		return "", err
	}
	if current, err := p.current(ctx, ref, before); err != nil {
		return "", err
	} else if current != expect {
		return "", conflict(ref)
	}
	a, err := call(ctx, p, func(api *azsecrets.Client) (answer, error) {
		return captured(ctx, func(ctx context.Context) error {
			_, err := api.SetSecret(ctx, ref.Path, azsecrets.SetSecretParameters{Value: &text, ContentType: contentType}, nil)
			return err
		})
	})
	if err != nil {
		return "", p.fault(ctx, err, ref, "set")
	}
	defer a.wipe()
	ours, _, err := a.describe()
	if err != nil {
		return "", p.fault(ctx, err, ref, "")
	}
	after, err := p.versions(ctx, ref)
	if err != nil {
		return "", err
	}
	for v := range after {
		if _, old := before[v]; !old && v != ours {
			return "", conflict(ref)
		}
	}
	return ours, nil
}

// current gives the newest version, be it in force or still to come, "" when
// there is none.
func (p *provider) current(ctx context.Context, ref providers.Ref, list map[providers.Version]attributes) (providers.Version, error) {
	v, sure := newest(list)
	if sure || len(list) == 0 {
		return v, nil
	}
	b, err := p.read(ctx, ref)
	b.Wipe()
	return b.Version, err
}

func conflict(ref providers.Ref) *providers.Error {
	return &providers.Error{Kind: providers.Conflict, Provider: name, Ref: ref,
		Message: "the secret is not at the version that is to be replaced: another writer was faster"}
}

// encode gives the payload as the SDK takes it: a string, which cannot be
// wiped, with the content type of an object of fields.
func encode(fields map[string]secret.Secret) (text string, contentType *string, err error) {
	b, err := providers.Encode(fields)
	defer clear(b)
	switch _, whole := fields[providers.Whole]; {
	case err != nil:
		return "", nil, err
	case !utf8.Valid(b):
		return "", nil, &providers.Error{Kind: providers.Unsupported, Message: "Key Vault holds text only"}
	case whole:
		return string(b), nil, nil
	}
	return string(b), new("application/json"), nil
}
