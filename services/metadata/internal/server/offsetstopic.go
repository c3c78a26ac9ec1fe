package server

import (
	"context"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
)

// PrepareOffsetsTopic implements peerv1connect.OffsetsTopicServiceHandler.
func (s *Server) PrepareOffsetsTopic(ctx context.Context, req *peerv1.PrepareOffsetsTopicRequest) (*peerv1.PrepareOffsetsTopicResponse, error) {
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.PrepareOffsetsTopicResponse, error) {
			version, err := s.o.Controller.PrepareOffsetsTopic(ctx)
			if err != nil {
				return nil, err
			}
			return &peerv1.PrepareOffsetsTopicResponse{Version: version}, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.PrepareOffsetsTopicResponse, error) {
			return peerv1connect.NewOffsetsTopicServiceClient(client).PrepareOffsetsTopic(ctx, req)
		})
}
