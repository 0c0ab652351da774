# 0: removal; 1: upgrade.
systemctl daemon-reload >/dev/null 2>&1 || :
if [ "$1" = 1 ]; then
    systemctl try-restart telecomx-gateway.service >/dev/null 2>&1 || :
fi
