# 1: first installation; 2: upgrade.
systemctl daemon-reload >/dev/null 2>&1 || :
if [ "$1" = 1 ]; then
    systemctl preset telecomx-gateway.service >/dev/null 2>&1 || :
fi
