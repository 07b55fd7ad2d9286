package aws

import (
	"context"
	"crypto/rand"
	"fmt"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// ownStage is the staging label of a version that Put has stored and not yet
// made current. A version needs a label, or AWS may delete it.
const ownStage = "credential-broker"

// Put implements providers.Writer. It is atomic: the new version is stored
// under a label of its own, and AWSCURRENT then moves from expect to it, which
// AWS refuses if another writer has moved it. It needs PutSecretValue,
// UpdateSecretVersionStage and DescribeSecret, and CreateSecret for new ones.
func (p *provider) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if ref.Version != "" {
		return "", &providers.Error{Kind: providers.Unsupported, Provider: name, Ref: ref, Message: "a pinned version cannot be replaced"}
	}
	text, binary, err := encode(fields)
	if err != nil {
		return "", withRef(err, ref)
	}
	defer clear(binary)
	token := newToken()
	current, err := p.current(ctx, ref)
	switch {
	case providers.KindOf(err) == providers.NotFound && expect == "":
		_, err := call(ctx, p, func() (*secretsmanager.CreateSecretOutput, error) {
			return p.api.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &ref.Path, ClientRequestToken: &token,
				SecretString: text, SecretBinary: binary})
		})
		if err != nil {
			return "", fault(err, ref, "secretsmanager:CreateSecret")
		}
		return providers.Version(token), nil
	case err != nil:
		return "", err
	case current != expect:
		return "", conflict(ref)
	}
	if _, err := call(ctx, p, func() (*secretsmanager.PutSecretValueOutput, error) {
		return p.api.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &ref.Path, ClientRequestToken: &token,
			SecretString: text, SecretBinary: binary, VersionStages: []string{ownStage}})
	}); err != nil {
		return "", fault(err, ref, "secretsmanager:PutSecretValue")
	}
	return p.promote(ctx, ref, token, expect)
}

// promote moves AWSCURRENT from expect to the version with id token.
func (p *provider) promote(ctx context.Context, ref providers.Ref, token string, expect providers.Version) (providers.Version, error) {
	stage := currentStage
	_, err := call(ctx, p, func() (*secretsmanager.UpdateSecretVersionStageOutput, error) {
		return p.api.UpdateSecretVersionStage(ctx, &secretsmanager.UpdateSecretVersionStageInput{SecretId: &ref.Path,
			VersionStage: &stage, MoveToVersionId: &token, RemoveFromVersionId: orNil(string(expect))})
	})
	if err == nil {
		return providers.Version(token), nil
	}
	if code, _ := codeOf(err); code == "InvalidParameterException" || code == "InvalidRequestException" {
		// The label is not where it was, or already on ours: the first
		// version of a secret gets it at once.
		switch current, cerr := p.current(ctx, ref); {
		case cerr != nil:
			return "", cerr
		case current == providers.Version(token):
			return current, nil
		case current != expect:
			return "", conflict(ref)
		}
	}
	return "", fault(err, ref, "secretsmanager:UpdateSecretVersionStage")
}

func conflict(ref providers.Ref) *providers.Error {
	return &providers.Error{Kind: providers.Conflict, Provider: name, Ref: ref,
		Message: "the secret is not at the version that is to be replaced: another writer was faster"}
}

// newToken is a ClientRequestToken, which becomes the version's id: a random
// UUID (RFC 9562 §5.4).
func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// encode gives the payload as the SDK takes it: text as a string, which cannot
// be wiped, and bytes for what is no text.
func encode(fields map[string]secret.Secret) (text *string, binary []byte, err error) {
	b, err := providers.Encode(fields)
	if err != nil || !utf8.Valid(b) {
		return nil, b, err
	}
	s := string(b)
	clear(b)
	return &s, nil, nil
}
