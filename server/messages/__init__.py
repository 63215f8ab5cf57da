"""The Anthropic Messages API, as another way to ask for the same chat.

protocol  wire shapes of requests        blocks  content blocks -> messages and parts of a chat
convert   request -> the equal chat request, validated; refusals in the client's own names
stream    chunks of a chat choice -> events          message  events -> the whole message
answer    a chat answer sent as either               fault    errors in Anthropic's shape
routes    the two routes, for the application's table
"""
